"""The events that this process sends, taken in by Prefect's own client for tests."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prefect.events import Event
from prefect.events.clients import AssertingEventsClient
from prefect.events.worker import EventsWorker


class Sent:
    """The events that were sent since it was opened."""

    def __init__(self, worker: EventsWorker) -> None:
        self._worker = worker

    def all(self) -> list[Event]:
        """In the order of their making: those that were queued, and those that were handed over at once."""
        stop(self._worker)
        events = [event for client in AssertingEventsClient.all for event in getattr(client, "events", [])]
        return sorted(events, key=lambda event: event.occurred)


def stop(worker: EventsWorker) -> None:
    """Stops the worker once it has handed everything over. In a running loop `drain` itself would only promise to."""
    worker._drain().result(timeout=30)


@contextmanager
def taken_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sent]:
    """No event reaches the server meanwhile."""
    AssertingEventsClient.reset()
    worker = EventsWorker.instance(AssertingEventsClient)
    monkeypatch.setattr(EventsWorker, "instance", lambda *_: worker)
    monkeypatch.setattr("flows.signals.events.get_events_client", AssertingEventsClient)
    yield Sent(worker)
    stop(worker)
    AssertingEventsClient.reset()
