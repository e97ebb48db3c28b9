"""The callback receiver: accepts calls, handles a limited number at once, and starts the collector if no run waits."""
