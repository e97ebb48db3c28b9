"""How steps are called, and when Prefect retries them. Only free steps are retried: the paid call has its own rules."""

import functools
from typing import Any, Final, ParamSpec, TypeVar, cast

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task
from prefect.utilities.annotations import opaque

from apixo import SoraError

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

RETRIES: Final = 5
LONGEST_DELAY_SECONDS: Final = 60.0


def whole(value: T) -> T:
    """Wraps an argument so that Prefect does not inspect it. The step gets it unchanged.

    Prefect walks through models and lists field by field, twice, to find futures. There are none, and for five steps
    that takes 3 ms per video. The run's graph still shows which step's result an argument is.
    """
    return cast("T", opaque(value))


def delays_seconds(first_seconds: float) -> list[float]:
    """The pause before each retry: doubling, at most a minute."""
    return [min(first_seconds * 2.0**number, LONGEST_DELAY_SECONDS) for number in range(RETRIES)]


def retried(step: Task[P, R], first_seconds: float) -> Task[P, R]:
    """The step with pauses before its retries: see `delays_seconds`."""
    copy: Task[P, R] = _retried(step, first_seconds)
    return copy


@functools.cache  # for each copy, Prefect reads the step's source code again, which takes 2 ms
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
"""The task options of a free step."""
