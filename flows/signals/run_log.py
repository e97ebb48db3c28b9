"""Logs a known error in one line, without the two tracebacks that Prefect adds.

Prefect logs a task's error with its traceback, logs it again in the flow, and repeats it in both *Finished in state*
lines. This project's own errors say what happened and what to do, so they are logged once. All other errors keep their
tracebacks.
"""

import logging
import re
from typing import Final

from apixo import SoraError
from flows.signals.output import protect_log_handlers

LOGGERS: Final = ("prefect.flow_runs", "prefect.task_runs")
LOGGED: Final = "_is_logged"
"""The attribute that is set on an error once its reason is in the log."""
FINISHED: Final = re.compile(r"^Finished in state (\w+)\(.*encountered an exception:? (\w+)", re.DOTALL)


class _ReasonOnce(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        raised = record.exc_info[1] if record.exc_info else None
        if isinstance(raised, SoraError):
            record.msg, record.args, record.exc_info, record.exc_text = str(raised), (), None, None
            return _first(raised)
        if record.levelno >= logging.ERROR and isinstance(record.args, tuple):
            # Logged by this project itself, such as the error of an unclear payment, before anything else can happen.
            ours = [item for item in record.args if isinstance(item, SoraError)]
            if len(ours) == len(record.args) == 1 and record.msg == "%s":
                return _first(ours[0])
        finished = FINISHED.match(record.getMessage()) if record.levelno >= logging.ERROR else None
        if finished and finished[2] in _names():
            record.msg, record.args = f"Finished in state {finished[1]}.", ()
            record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
        return True


def _first(error: SoraError) -> bool:
    if getattr(error, LOGGED, False):
        return False
    setattr(error, LOGGED, True)
    return True


def _names() -> set[str]:
    """The class names of all of this project's errors that are imported in this process."""
    found, left = set[str](), list[type[SoraError]]([SoraError])
    while left:
        error = left.pop()
        found.add(error.__name__)
        left += error.__subclasses__()
    return found


_FILTER: Final = _ReasonOnce()


def prepare_run_log() -> None:
    """Flows call it first, so that no log can fail them, and reasons are logged once. Repeating it changes nothing."""
    protect_log_handlers()
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_FILTER)
