"""When Prefect retries a step automatically. Only free steps use this: the paid call has its own rules."""

import functools
from typing import Any, Final, ParamSpec, TypeVar

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from apixo import SoraError

P = ParamSpec("P")
R = TypeVar("R")

RETRIES: Final = 5
LONGEST_DELAY_SECONDS: Final = 60.0


def delays_seconds(first_seconds: float) -> list[float]:
    """The pause before each retry: doubling, at most a minute."""
    return [min(first_seconds * 2.0**number, LONGEST_DELAY_SECONDS) for number in range(RETRIES)]


def retried(step: Task[P, R], first_seconds: float) -> Task[P, R]:
    """A step with these pauses before its retries; the first has this many seconds."""
    copy: Task[P, R] = _retried(step, first_seconds)
    return copy


@functools.cache  # for each copy, Prefect reads the step's source again, which takes 2 ms
def _retried(step: Task[Any, Any], first_seconds: float) -> Any:
    return step.with_options(retry_delay_seconds=delays_seconds(first_seconds))


def is_transient(error: object) -> bool:
    """Whether the same step may succeed a moment later. Unexpected errors are not retried: they are bugs."""
    return isinstance(error, SoraError) and error.retryable


async def retry_transient(task: Task[Any, Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Prefect's `retry_condition_fn`."""
    del task, task_run
    return is_transient(await state.aresult(raise_on_failure=False))


FREE_STEP: Final[dict[str, Any]] = {
    "retries": RETRIES,
    "retry_jitter_factor": 0.3,
    "retry_condition_fn": retry_transient,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}
"""The options of a free task."""
