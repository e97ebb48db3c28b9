"""The events that other flows and automations wait for. They hold no secret and no signed address."""

from typing import Any, Final, Literal

from prefect.events import emit_event

from flows.generation import Generation

Happening = Literal["submitted", "succeeded", "failed", "archived", "unconfirmed", "expiring"]

TASK_FINISHED: Final = "apixo.task.finished"
"""A task has ended, as the API itself told the callback receiver. Waiting runs and the collector ask at once."""

PROMPT_CHARACTERS: Final = 200
"""How much of the prompt an event repeats: enough to know it again, and Prefect limits the size of events."""


def emit(happening: Happening, generation: Generation, **more: Any) -> None:
    """Emits `sora.generation.<happening>` about this generation. An event is a hint; the ledger is the truth."""
    request = generation.request
    emit_event(
        event=f"sora.generation.{happening}",
        resource={
            "prefect.resource.id": f"sora.generation.{generation.key}",
            "prefect.resource.name": generation.key,
        },
        payload={
            "key": generation.key,
            "state": generation.state.value,
            "task_id": generation.task_id,
            "request": {
                "prompt": request.prompt[:PROMPT_CHARACTERS],
                "duration": request.duration,
                "aspect_ratio": request.aspect_ratio,
                "mode": request.mode,
            },
            "objects": [{"kind": item.kind, "bucket": item.bucket, "name": item.name} for item in generation.objects],
            **more,
        },
    )


def emit_task_finished(key: str, *, task_id: str, api: str, archive: str, calls_collector: bool = True) -> None:
    """Emits `apixo.task.finished`: waiting runs ask at once.

    Args:
        key: the generation.
        task_id: its task, which the API reports as ended.
        api, archive: names of the blocks, for the collector.
        calls_collector: whether the automation of `collect-videos` starts a run for it.
    """
    emit_event(
        event=TASK_FINISHED,
        resource={
            "prefect.resource.id": f"sora.generation.{key}",
            "prefect.resource.name": key,
            "sora.collector": "called" if calls_collector else "not called",
        },
        payload={"key": key, "task_id": task_id, "api": api, "archive": archive},
    )
