"""The events that other flows and automations wait for. They contain no secret and no signed URL.

An event is only a hint; the ledger decides. `emit` only queues an event. `deliver` waits until Prefect has confirmed
it; it sends the ends of generations, on which other flows depend. The open marker stays until then.
"""

import asyncio
from contextlib import suppress
from decimal import Decimal
from typing import Any, Final, Literal
from uuid import NAMESPACE_URL, uuid5

from prefect import get_client
from prefect.events import Event, emit_event
from prefect.events.clients import EventsClient, get_events_client
from prefect.events.related import related_resources_from_run_context

from blocks import VideoArchive
from flows.record.generation import Generation, Problem, State
from flows.record.ledger import Ledger
from flows.signals.artifacts import artifact_key
from flows.signals.progress import run_logger

Happening = Literal["submitted", "succeeded", "failed", "archived", "unconfirmed", "expiring"]

TASK_FINISHED: Final = "apixo.task.finished"
"""A task has ended, as the API itself confirmed to the callback receiver. Waiting runs and the collector continue."""

PROVIDER_BLOCKED: Final = "sora.provider.blocked"
"""A batch submits no more: APIXO rejects the account, the key or the model, or gives no clear answers."""

BUDGET_LOW: Final = "sora.budget.low"
"""Four fifths of the ceiling of a day or month are spent or reserved. Emitted once for each day and month."""

BALANCE_LOW: Final = "sora.balance.low"
"""A batch starts while the APIXO account has less than the API block's `balance_warning_below`."""

PROMPT_CHARACTERS: Final = 200
"""How much of the prompt an event repeats: enough to recognize it; Prefect limits the size of events."""


DELIVERY_TIMEOUT_SECONDS: Final = 10.0
"""How long an end may take to reach Prefect. After that the run continues, and the collector delivers it later."""
NEVER_SECONDS: Final = 1e9
CLOSING_SECONDS: Final = 5.0
"""How long closing broken connections may take at the end of a run."""


class EventConnection:
    """The single connection over which a run sends the events that Prefect must confirm. For one event loop.

    Opened by the first event, and again if it breaks. A connection per event would cost Prefect's server and the run
    several requests, which on a busy machine take longer than a confirmation may take.
    """

    def __init__(self) -> None:
        self._client: EventsClient | None = None
        self._opening = asyncio.Lock()
        self._closing = set[asyncio.Task[None]]()

    async def send(self, event: Event) -> None:
        """Sends an event and returns once the server has confirmed it; if the connection breaks, it is sent once more.

        Several may be sent at the same time. If a confirmation is lost, the event is sent twice, with the same id.

        Raises:
            Exception: whatever Prefect's client raises; the server has not confirmed it.
        """
        for last in (False, True):
            client = await self._opened()
            try:
                await client.emit(event)  # returns after the server's pong, since a checkpoint follows each event
            except BaseException as error:
                self._drop(client)  # after a time-out too: the connection may never answer again
                if last or not isinstance(error, Exception):
                    raise
            else:
                return

    async def aclose(self) -> None:
        """Closes the connection. The next event would open it again."""
        if self._client is not None:
            self._drop(self._client)
        if self._closing:
            _, left = await asyncio.wait(self._closing, timeout=CLOSING_SECONDS)
            for task in left:
                task.cancel()

    async def _opened(self) -> EventsClient:
        async with self._opening:
            if self._client is None:
                # No automatic reconnection: the client cannot do that while several events are being sent.
                client = get_events_client(
                    reconnection_attempts=0, checkpoint_every=1, checkpoint_interval=NEVER_SECONDS
                )
                self._client = await client.__aenter__()
            return self._client

    def _drop(self, client: EventsClient) -> None:
        if client is self._client:
            self._client = None
            closing = asyncio.create_task(_close(client), name="close-event-connection")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)


def emit(happening: Happening, generation: Generation, **more: Any) -> None:
    """Queues `sora.generation.<happening>` about this generation. It may be lost with a process that is killed.

    Never raises: an event must not cost a run what it has paid for.
    """
    payload = _payload(generation, more)
    _emit_safely(f"sora.generation.{happening}", f"sora.generation.{generation.key}", generation.key, payload)


async def deliver(
    happening: Literal["archived", "failed"], generation: Generation, connection: EventConnection, **more: Any
) -> bool:
    """Sends `sora.generation.<happening>` and waits until the server has confirmed it.

    Every event for the same end has the same id, so that Prefect recognizes a repetition.

    Returns:
        Whether the server has it. False after `DELIVERY_TIMEOUT_SECONDS`, or when it cannot be reached.
    """
    event = Event(
        id=uuid5(NAMESPACE_URL, f"sora:{generation.end_id}:{happening}"),
        event=f"sora.generation.{happening}",
        resource=_resource(f"sora.generation.{generation.key}", generation.key),
        payload=_without_nul(_payload(generation, more)),
    )
    try:
        async with asyncio.timeout(DELIVERY_TIMEOUT_SECONDS):
            async with get_client() as client:
                event.related = await related_resources_from_run_context(client)
            await connection.send(event)
    except Exception as error:  # noqa: BLE001 - Prefect's client raises anything; it must not fail the run
        run_logger().warning(
            "Prefect did not confirm the event %s of %s (%s). The collector will send it again.",
            event.event, generation.key, type(error).__name__,
        )  # fmt: skip
        return False
    return True


async def publish_end(
    ended: Generation,
    ledger: Ledger,
    archive: VideoArchive,
    connection: EventConnection,
    *,
    is_new: bool = False,
) -> None:
    """Sends the event `archived` or `failed`, and removes the open marker once Prefect has confirmed it.

    The marker also stays if the run dies in between, or if the Prefect server is down: a later run that finds the
    marker sends the event again.

    Args:
        is_new: the caller has just recorded the end, so it is published even if there is no marker: a process that
            published an earlier end may have removed the marker and died before it could restore it. Prefect recognizes
            a second event as a repetition. If false, a missing marker means that the event was delivered.
    """
    if not is_new:
        published = await ledger.is_published(ended.key)
        if published and not ended.unarchived_superseded:
            await ledger.close(ended)
        if published is not False:
            return
    if ended.state is State.ARCHIVED:
        names = [item.name for item in ended.objects]
        links = {name: link for name in names if (link := archive.public_link(name))}
        delivered = await deliver("archived", ended, connection, links=links)
    else:
        delivered = await deliver("failed", ended, connection, fail_code=ended.failure().fail_code)
    if delivered:
        await ledger.close(ended)


def emit_task_finished(
    key: str, *, task_id: str, api: str, archive: str, end: str | None = None, calls_collector: bool = True
) -> None:
    """Emits `apixo.task.finished`: waiting runs continue at once.

    Args:
        task_id: its task, which the API reports as ended.
        api, archive: names of the blocks, for the collector.
        end: how it ended, encrypted: see `handed_over`. Without it, the waiting run polls the API.
        calls_collector: whether the automation of `collect-videos` starts a run for it.
    """
    emit_event(
        event=TASK_FINISHED,
        resource={
            **_resource(f"sora.generation.{key}", key),
            "sora.collector": "called" if calls_collector else "not called",
        },
        payload={"key": key, "task_id": task_id, "api": api, "archive": archive, "end": end},
    )


def emit_blocked(batch_key: str, refusal: Problem) -> None:
    """Queues `sora.provider.blocked`: why a batch submits no more. Never raises."""
    payload = {"batch": batch_key, "code": refusal.code, "kind": refusal.kind, "message": refusal.message}
    _emit_safely(PROVIDER_BLOCKED, f"sora.batch.{batch_key}", batch_key, payload)


def emit_budget_low(period: str, *, limit: Decimal, committed: Decimal, currency: str) -> None:
    """Queues `sora.budget.low`. Never raises.

    Args:
        period: a day such as `2026-11-28`, or a month such as `2026-11`.
        limit, committed, currency: what may be spent in the period, and what is spent or reserved.
    """
    payload = {"period": period, "limit": str(limit), "committed": str(committed), "currency": currency}
    _emit_safely(BUDGET_LOW, f"sora.budget.{period}", period, payload)


def emit_balance_low(balance: Decimal, threshold: Decimal) -> None:
    """Queues `sora.balance.low`. Never raises."""
    payload = {"balance": str(balance), "threshold": str(threshold), "currency": "USD"}
    _emit_safely(BALANCE_LOW, "sora.balance", "APIXO account", payload)


def _emit_safely(event: str, resource_id: str, name: str, payload: dict[str, Any]) -> None:
    try:
        emit_event(event=event, resource=_resource(resource_id, name), payload=_without_nul(payload))
    except Exception as error:  # noqa: BLE001 - Prefect's client raises anything
        run_logger().warning("The event %s of %s was not sent (%s).", event, name, type(error).__name__)


def _resource(resource_id: str, name: str) -> dict[str, str]:
    return {"prefect.resource.id": resource_id, "prefect.resource.name": name}


def _payload(generation: Generation, more: dict[str, Any]) -> dict[str, Any]:
    request = generation.request
    return {
        "key": generation.key,
        "artifact": artifact_key(generation.key),
        "state": generation.state.value,
        "task_id": generation.task_id,
        "model": generation.attempt.model,
        "request": {
            "prompt": request.prompt[:PROMPT_CHARACTERS],
            "model": request.model,
            "duration": request.seconds,
            "aspect_ratio": request.aspect_ratio,
            "mode": request.mode,
            "tags": request.tags,
        },
        "objects": [{"kind": item.kind, "bucket": item.bucket, "name": item.name} for item in generation.objects],
        **more,
    }


def _without_nul(value: Any) -> Any:
    """The value without NUL: PostgreSQL's JSON rejects it, and Prefect would drop the event and others with it."""
    if isinstance(value, str):
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
    if isinstance(value, dict):
        return {_without_nul(name): _without_nul(item) for name, item in value.items()}
    return [*map(_without_nul, value)] if isinstance(value, list | tuple) else value


async def _close(client: EventsClient) -> None:
    with suppress(Exception):  # it is broken, or no longer needed
        await client.__aexit__(None, None, None)
