"""Which model is tried next when APIXO does not offer the previous one. All pure."""

from collections.abc import Collection, Sequence

from apixo import ModelNotFoundError, VideoRequest
from flows.record.generation import Attempt, Problem


def is_gone(problem: Problem | None) -> bool:
    """Whether an attempt was rejected, and so provably not paid, because its model does not exist or is unavailable."""
    return problem is not None and problem.kind == ModelNotFoundError.__name__


def next_model(request: VideoRequest, fresh: Sequence[Attempt], known: Collection[str] = ()) -> str | None:
    """The first model of a request that has not been rejected as unavailable; None: all have been.

    Args:
        fresh: the attempts since this run began. Every run begins with the requested model: it may be available again,
            and a rejection is free.
        known: models that were rejected as unavailable for other videos of this run.
    """
    gone = {attempt.model for attempt in fresh if is_gone(attempt.problem)} | set(known)
    return next((model for model in request.models if model not in gone), None)
