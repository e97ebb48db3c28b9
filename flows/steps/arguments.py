"""How models are passed to a step."""

from typing import TypeVar, cast

from prefect.utilities.annotations import opaque

T = TypeVar("T")


def whole(value: T) -> T:
    """The value as an argument that Prefect does not inspect. The step gets it as it is.

    Prefect walks through models and lists field by field, twice, to find futures. There are none, and for five steps
    that takes 3 ms per video. It still knows which step's result an argument is, for the graph of a run.
    """
    return cast("T", opaque(value))
