"""What is reported: events, the subscription to them, artifacts, progress, logs. None of it decides anything."""
