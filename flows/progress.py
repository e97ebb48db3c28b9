"""Where a generation stands right now, told to whoever listens in this process, such as the command line.

The Prefect UI shows the task runs. A progress artifact for each poll was measured at 12 ms of server CPU, so there is
none.
"""

import logging
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, Literal

from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

Step = Literal["validate_image", "submit", "wait", "fetch", "archive"]
STEPS: Final[tuple[Step, ...]] = ("validate_image", "submit", "wait", "fetch", "archive")


@dataclass(frozen=True, slots=True)
class Progress:
    """One piece of news.

    Attributes:
        key: the generation.
        step: the step it is about.
        doing: a few words for a person.
        fraction: how much of the step is done, 0 to 1; None when nobody knows.
        done: the step ended well.
    """

    key: str
    step: Step
    doing: str
    fraction: float | None = None
    done: bool = False


Listener = Callable[[Progress], None]
Expect = Callable[[int], None]
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
_expect: ContextVar[Expect | None] = ContextVar("expect", default=None)


def listen(listener: Listener, *, expect: Expect | None = None) -> None:
    """Has the listener called with all news of the generations that run in this context from now on.

    Args:
        listener: gets every piece of news.
        expect: gets the number of generations of a batch, before the first of them begins.
    """
    _listener.set(listener)
    _expect.set(expect)


def tell_count(videos: int) -> None:
    """Tells the listener how many generations there will be, if it wants to know."""
    expect = _expect.get()
    if expect is not None:
        expect(videos)


def tell(key: str, step: Step, doing: str, *, fraction: float | None = None, done: bool = False) -> None:
    """Tells the listener, if there is one."""
    listener = _listener.get()
    if listener is not None:
        listener(Progress(key, step, doing, fraction, done))


def run_logger() -> logging.Logger | logging.LoggerAdapter[logging.Logger]:
    """The log of the Prefect run; outside of one, a plain logger."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("sora")
