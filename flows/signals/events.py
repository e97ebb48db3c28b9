"""The events that other flows and automations wait for. They hold no secret and no signed address.

An event is a hint; the ledger is the truth. Most are only queued, by `emit`. The ends of a generation, which others
build on, are handed over by `deliver`, and its open marker stays until Prefect has confirmed them.
"""

import asyncio
from decimal import Decimal
from typing import Any, Final, Literal
from uuid import NAMESPACE_URL, uuid5

from prefect import get_client
from prefect.events import Event, emit_event
from prefect.events.related import related_resources_from_run_context

from flows.record.generation import Generation, Problem
from flows.signals.artifacts import artifact_key
from flows.signals.event_connection import EventConnection
from flows.signals.progress import run_logger

Happening = Literal["submitted", "succeeded", "failed", "archived", "unconfirmed", "expiring"]

TASK_FINISHED: Final = "apixo.task.finished"
"""A task has ended, as the API itself confirmed to the callback receiver. Waiting runs and the collector go on then."""

PROVIDER_BLOCKED: Final = "sora.provider.blocked"
"""The balance is too low, or the API key or the model is refused: a person has to do something."""

BUDGET_LOW: Final = "sora.budget.low"
"""Four fifths of what may be spent in a day or a month are spent or reserved. Once per day and month."""

BALANCE_LOW: Final = "sora.balance.low"
"""A batch starts, and the APIXO account has less than the API block's `balance_warning_below`."""

PROMPT_CHARACTERS: Final = 200
"""How much of the prompt an event repeats: enough to know it again, and Prefect limits the size of events."""


DELIVERY_TIMEOUT_SECONDS: Final = 10.0
"""How long an end may take to reach Prefect. The run goes on after that, and the collector delivers it later."""


def emit(happening: Happening, generation: Generation, **more: Any) -> None:
    """Queues `sora.generation.<happening>` about this generation. A process that is killed may take it along.

    Never raises: an event must not cost a run what it has paid for.
    """
    try:
        emit_event(event=_name(happening), resource=_resource(generation), payload=_payload(generation, more))
    except Exception as error:  # noqa: BLE001 - Prefect's client raises any
        run_logger().warning("The event %s of %s was not sent (%s).", happening, generation.key, type(error).__name__)


async def deliver(
    happening: Literal["archived", "failed"], generation: Generation, connection: EventConnection, **more: Any
) -> bool:
    """Sends `sora.generation.<happening>` and waits until the server has confirmed it.

    It has the same id however often it is sent for one end, so that Prefect takes a repetition for what it is.

    Returns:
        Whether the server has it. False after `DELIVERY_TIMEOUT_SECONDS`, or when it cannot be reached.
    """
    event = Event(
        id=uuid5(NAMESPACE_URL, f"sora:{generation.end}:{happening}"),
        event=_name(happening),
        resource=_resource(generation),
        payload=_payload(generation, more),
    )
    try:
        async with asyncio.timeout(DELIVERY_TIMEOUT_SECONDS):
            async with get_client() as client:
                event.related = await related_resources_from_run_context(client)
            await connection.send(event)
    except Exception as error:  # noqa: BLE001 - Prefect's client raises any; none may cost a run that has its video
        run_logger().warning(
            "Prefect did not confirm the event %s of %s (%s). The collector sends it again.",
            event.event, generation.key, type(error).__name__,
        )  # fmt: skip
        return False
    return True


def emit_task_finished(
    key: str, *, task_id: str, api: str, archive: str, end: str | None = None, calls_collector: bool = True
) -> None:
    """Emits `apixo.task.finished`: waiting runs go on at once.

    Args:
        task_id: its task, which the API reports as ended.
        api, archive: names of the blocks, for the collector.
        end: how it ended, sealed: see `handed_over`. Without it, who waits asks the API.
        calls_collector: whether the automation of `collect-videos` starts a run for it.
    """
    emit_event(
        event=TASK_FINISHED,
        resource={
            "prefect.resource.id": f"sora.generation.{key}",
            "prefect.resource.name": key,
            "sora.collector": "called" if calls_collector else "not called",
        },
        payload={"key": key, "task_id": task_id, "api": api, "archive": archive, "end": end},
    )


def emit_blocked(batch_key: str, refusal: Problem) -> None:
    """Queues `sora.provider.blocked`: APIXO refuses whatever this account, key or model submits. Never raises."""
    payload = {"batch": batch_key, "code": refusal.code, "kind": refusal.kind, "message": refusal.message}
    _emit_safely(PROVIDER_BLOCKED, f"sora.batch.{batch_key}", batch_key, payload)


def emit_budget_low(period: str, *, limit: Decimal | None, committed: Decimal, currency: str) -> None:
    """Queues `sora.budget.low`. Never raises.

    Args:
        period: a day such as `2026-11-28`, or a month such as `2026-11`.
        limit, committed, currency: what may be spent in it, and what is spent or reserved.
    """
    payload = {"period": period, "limit": str(limit), "committed": str(committed), "currency": currency}
    _emit_safely(BUDGET_LOW, f"sora.budget.{period}", period, payload)


def emit_balance_low(balance: Decimal, threshold: Decimal) -> None:
    """Queues `sora.balance.low`. Never raises."""
    payload = {"balance": str(balance), "threshold": str(threshold), "currency": "USD"}
    _emit_safely(BALANCE_LOW, "sora.balance", "APIXO account", payload)


def _emit_safely(event: str, resource_id: str, name: str, payload: dict[str, Any]) -> None:
    try:
        emit_event(
            event=event, resource={"prefect.resource.id": resource_id, "prefect.resource.name": name}, payload=payload
        )
    except Exception as error:  # noqa: BLE001 - Prefect's client raises any
        run_logger().warning("The event %s was not sent (%s).", event, type(error).__name__)


def _name(happening: Happening) -> str:
    return f"sora.generation.{happening}"


def _resource(generation: Generation) -> dict[str, str]:
    return {
        "prefect.resource.id": f"sora.generation.{generation.key}",
        "prefect.resource.name": generation.key,
    }


def _payload(generation: Generation, more: dict[str, Any]) -> dict[str, Any]:
    request = generation.request
    return {
        "key": generation.key,
        "artifact": artifact_key(generation.key),
        "state": generation.state.value,
        "task_id": generation.task_id,
        "model": generation.attempt.model,
        "request": {
            # PostgreSQL's JSON holds no NUL, and Prefect would drop the event, with others that come at the same time.
            "prompt": request.prompt[:PROMPT_CHARACTERS].replace("\0", "\N{REPLACEMENT CHARACTER}"),
            "model": request.model,
            "duration": request.seconds,
            "aspect_ratio": request.aspect_ratio,
            "mode": request.mode,
            "tags": request.tags,
        },
        "objects": [{"kind": item.kind, "bucket": item.bucket, "name": item.name} for item in generation.objects],
        **more,
    }
