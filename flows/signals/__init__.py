"""Reporting: events, the subscription to them, artifacts, progress, logs.

No payment depends on it. In the ledger, only one thing does: `publish_end` in `events.py` removes an ended
generation's open marker once its event was delivered.
"""
