"""Reports the current progress of a generation to a listener in this process, such as the command line.

The Prefect UI shows the task runs. There is no progress artifact: updating it was measured at 12 ms of server CPU per
poll. Nothing here can fail: a broken log or display must not end a paid generation.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Literal

from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger
from prefect.logging.loggers import PrefectLogAdapter

Step = Literal["validate_image", "submit", "wait", "fetch", "archive"]
STEPS: Final[tuple[Step, ...]] = ("validate_image", "submit", "wait", "fetch", "archive")


@dataclass(frozen=True, slots=True)
class Progress:
    """One progress report.

    Attributes:
        doing: a few words for the user.
        done: whether the step has succeeded.
        next_seconds: the time until the next check; None if unknown.
    """

    key: str
    step: Step
    doing: str
    done: bool = False
    next_seconds: float | None = None


Listener = Callable[[Progress], None]
Expect = Callable[[int], None]


class _Display:
    """A listener until its first failure. All tasks of a run share this object; they only copy the variable."""

    def __init__(self, listener: Listener, expect: Expect | None) -> None:
        self.listener: Listener | None = listener
        self.expect = expect

    def call(self, report: Callable[[], None]) -> None:
        try:
            report()
        except (Exception, SystemExit):  # noqa: BLE001 - arbitrary code; rich raises SystemExit for a closed pipe
            self.listener = self.expect = None
            run_logger().warning("The progress display failed and is turned off.", exc_info=True)


_display: ContextVar[_Display | None] = ContextVar("display", default=None)


def listen(listener: Listener, *, expect: Expect | None = None) -> None:
    """Calls the listener with every report about the generations that run in this context from now on.

    Args:
        listener: called with every report. One that raises is not called again.
        expect: called with the number of generations in a batch, before the first one begins.
    """
    _display.set(_Display(listener, expect))


def report_total(videos: int) -> None:
    """Reports how many generations there will be, if there is a listener for that. Never raises."""
    display = _display.get()
    if display is not None and (expect := display.expect) is not None:
        display.call(lambda: expect(videos))


def report_progress(key: str, step: Step, doing: str, *, done: bool = False, next_seconds: float | None = None) -> None:
    """Reports to the listener, if there is one. Never raises."""
    display = _display.get()
    if display is not None and (listener := display.listener) is not None:
        display.call(lambda: listener(Progress(key, step, doing, done, next_seconds)))


class RunLog(PrefectLogAdapter):
    """A log whose calls never raise: a record that cannot be written is lost, and the work continues."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """As in `logging.LoggerAdapter`; every other method calls this one."""
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1  # so that records show the caller, not this method
        with suppress(Exception, SystemExit):  # rich raises SystemExit for a closed pipe
            super().log(level, msg, *args, **kwargs)


def run_logger() -> RunLog:
    """The log of the Prefect run; outside a run, a plain logger. Its calls never raise."""
    try:
        found = get_run_logger()
    except MissingContextError:
        found = logging.getLogger("sora")
    if isinstance(found, logging.LoggerAdapter):
        return RunLog(found.logger, found.extra)
    return RunLog(found, {})
