"""The provider's callbacks, handled as the receiver does."""

from flows.callbacks import CallbackOutcome, answer_call
from flows.resources import Resources
from flows.signals.events import emit_task_finished
from tests.support.events import Sent


def notify(key: str, task_id: str, end: str | None) -> None:
    emit_task_finished(key, task_id=task_id, api="an-api", archive="an-archive", end=end)


async def call(
    key: str, resources: Resources, claimed_task_id: str | None = None, *, attempt: int = 1
) -> CallbackOutcome:
    return await answer_call(key, attempt, claimed_task_id, resources, notify=notify)


def names_of(sent: Sent, key: str) -> list[str]:
    return [event.event for event in sent.all() if event.resource.id == f"sora.generation.{key}"]
