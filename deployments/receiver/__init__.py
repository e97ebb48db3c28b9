"""The callback receiver: takes calls in, handles so many at once, starts the collector for what nobody waits for."""
