"""What is reported: events, the subscription to them, artifacts, progress, logs.

No payment depends on any of it. One thing in the ledger does: `publish_end` in `events.py` removes the open marker of
an ended generation once its event was delivered.
"""
