"""The callback receiver: takes calls in, handles so many at once, and starts the collector for what nobody waits for."""
