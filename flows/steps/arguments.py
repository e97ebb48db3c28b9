"""How models are handed to a step."""

from typing import TypeVar, cast

from prefect.utilities.annotations import opaque

T = TypeVar("T")


def whole(value: T) -> T:
    """The value as an argument that Prefect does not look into. The step gets it as it is.

    Prefect walks through models and lists field by field, twice, for futures. There are none, and for five steps that
    takes 3 ms a video. Which step's result an argument is, as the graph of a run draws it, it knows all the same.
    """
    return cast("T", opaque(value))
