"""The paid tasks of a generation that do not count, because another of its tasks does. All pure.

Their videos are archived as well, each in its own folder, and change nothing else in the record.
"""

from datetime import datetime
from typing import Any

from flows.record.generation import ArchivedObject, Generation, PaidTask, Source, SupersededTask
from flows.record.pipeline_errors import SupersededError


def also_taken(generation: Generation, *, attempt_number: int, task_id: str, now: datetime) -> Generation:
    """The provider accepted an attempt twice: this is the second task. The recorded one still counts."""
    if task_id in generation.task_ids:
        return generation
    return one_more(generation, attempt_number, task_id, "callback", now=now)


def one_more(generation: Generation, number: int, task_id: str, named_by: Source, *, now: datetime) -> Generation:
    """Adds another task that the provider accepted for this attempt: paid for, but not the one that counts."""
    attempt = generation.attempts[number - 1]
    item = SupersededTask(task_id=task_id, folder=generation.next_folder, named_by=named_by)
    update = {"superseded": (*attempt.superseded, item)}
    changed = generation.with_attempt(number, update, now=now)
    return changed.model_copy(update={"tasks_named": generation.next_naming})


def with_own_task(generation: Generation, number: int, *, now: datetime) -> Generation:
    """Lists an attempt's own task among those whose videos are archived alongside."""
    attempt = generation.attempts[number - 1]
    item = SupersededTask(task_id=attempt.task_id or "", folder=attempt.folder or "", named_by=attempt.named_by)
    return generation.with_attempt(number, {"superseded": (*attempt.superseded, item)}, now=now)


def is_superseded(generation: Generation, task_id: str) -> bool:
    """Whether this task was paid for, and the generation continues with another one."""
    return any(item.task_id == task_id for attempt in generation.attempts for item in attempt.superseded)


def superseded_error(generation: Generation, task_id: str) -> SupersededError:
    """The error for a record that has moved on to a different task than the step's."""
    return SupersededError(
        f"{generation.key} has the task {generation.task_id}, not {task_id}: another one has been named since. "
        "Run it again: it continues with that one.",
        key=generation.key,
        task_id=task_id,
    )


def archived(
    generation: Generation, task: PaidTask, objects: tuple[ArchivedObject, ...], *, now: datetime
) -> Generation:
    """The video of a superseded task is in the archive. The state of the generation does not change.

    Raises:
        SupersededError: the record no longer has this task.
    """
    if not is_superseded(generation, task.task_id):
        raise superseded_error(generation, task.task_id)
    return _changed(generation, task.task_id, {"objects": objects}, now=now)


def ended(generation: Generation, task_id: str, why: str, *, now: datetime) -> Generation:
    """A superseded task will not produce a video. A task that has a video or an end does not change."""
    listed = (item for attempt in generation.attempts for item in attempt.superseded if item.task_id == task_id)
    return generation if any(item.ended for item in listed) else _changed(generation, task_id, {"ended": why}, now=now)


def _changed(generation: Generation, task_id: str, update: dict[str, Any], *, now: datetime) -> Generation:
    """Changes a superseded task in each attempt that lists it, unless it has its video."""
    for attempt in generation.attempts:
        kept = tuple(
            item.model_copy(update=update) if item.task_id == task_id and not item.objects else item
            for item in attempt.superseded
        )
        if kept != attempt.superseded:
            generation = generation.with_attempt(attempt.number, {"superseded": kept}, now=now)
    return generation
