"""Reports parameters that are too large, with advice, before Prefect rejects and prints all of them."""

import json
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Flow
from prefect.settings import get_current_settings

from flows.record.pipeline_errors import PipelineError

P = ParamSpec("P")
R = TypeVar("R")


class TooManyRequestsError(PipelineError):
    """A list of requests is larger than Prefect accepts as a parameter. Nothing was submitted."""


class LimitedFlow(Flow[P, R]):
    """A flow that measures its parameters before a run is created.

    Prefect accepts 512 KiB. It rejects more with a 422 that does not mention calendars, and its client then prints the
    whole list. This check covers calls from Python only, not over HTTP or in the UI.
    """

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        serialized = super().serialize_parameters(parameters)
        most = get_current_settings().server.api.max_parameter_size
        size = len(json.dumps(serialized, separators=(",", ":")))  # as Prefect's server counts: as ASCII
        if 0 < most < size:
            raise TooManyRequestsError(
                f"The parameters of {self.name} are {size:,} bytes; Prefect accepts {most:,}. Nothing was submitted. "
                "Write the requests to a calendar, one JSON object per line, put it into the archive's bucket, and "
                "give its URL instead: calendar='s3://sora-videos/calendars/spring.jsonl'. The batch's key is "
                "then the file's name, unless you give one."
            )
        return serialized


def limited_flow(**options: Any) -> Callable[[Callable[P, R]], LimitedFlow[P, R]]:
    """A decorator like Prefect's `flow` that makes a `LimitedFlow`. Accepts the options of `Flow`."""
    return lambda function: LimitedFlow(function, **options)
