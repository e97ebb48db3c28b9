"""What is reported: events, the subscription to them, artifacts, progress, logs. Nothing depends on any of it."""
