"""Captures the events that this process sends, with Prefect's own client for tests."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prefect.events import Event
from prefect.events.clients import AssertingEventsClient
from prefect.events.worker import EventsWorker


class Sent:
    """The events that were sent since the capture began."""

    def __init__(self, worker: EventsWorker) -> None:
        self._worker = worker

    def all(self) -> list[Event]:
        """All events, queued or sent directly, in the order in which they occurred."""
        stop(self._worker)
        events = [event for client in AssertingEventsClient.all for event in getattr(client, "events", [])]
        return sorted(events, key=lambda event: event.occurred)


def stop(worker: EventsWorker) -> None:
    """Stops the worker after it has sent everything. In a running loop, `drain` would only return an awaitable."""
    worker._drain().result(timeout=30)


@contextmanager
def taken_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sent]:
    """Captures all events until the block ends. None reaches the server."""
    AssertingEventsClient.reset()
    worker = EventsWorker.instance(AssertingEventsClient)
    monkeypatch.setattr(EventsWorker, "instance", lambda *_: worker)
    monkeypatch.setattr("flows.signals.events.get_events_client", AssertingEventsClient)
    yield Sent(worker)
    stop(worker)
    AssertingEventsClient.reset()
