"""Logs and displays that fail: the work that reports to them continues."""

import asyncio
import logging
from collections.abc import Callable
from contextvars import copy_context

import pytest
from prefect import flow, task
from prefect.logging import get_run_logger

from deployments.local.prefect_server import PrefectServer
from flows.signals.progress import Progress, RunLog, listen, report_progress, report_total, run_logger
from tests.support import unique


def raising(error: type[BaseException]) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


class FailingHandler(logging.Handler):
    """A handler that raises."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.emit = raising(error)  # type: ignore[method-assign]


@pytest.fixture
def log() -> RunLog:
    logger = logging.getLogger(unique("sora"))
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    return RunLog(logger, {})


@pytest.mark.parametrize("error", [OSError, ValueError, RecursionError, SystemExit])
def test_run_log_calls_never_raise(error: type[BaseException], log: RunLog) -> None:
    log.logger.addHandler(FailingHandler(error))
    log.debug("x")
    log.info("x %s", 1)
    log.warning("x")
    log.error("x", extra={"a": 1}, stacklevel=2, exc_info=True)
    log.exception("x")
    log.critical("x")
    log.log(logging.INFO, "x")


@pytest.mark.parametrize("error", [KeyboardInterrupt, asyncio.CancelledError])
def test_exceptions_that_end_a_run_propagate(error: type[BaseException], log: RunLog) -> None:
    log.logger.addHandler(FailingHandler(error))
    with pytest.raises(error):
        log.info("x")
    context = copy_context()  # the listener stays in this context
    context.run(listen, raising(error))
    with pytest.raises(error):
        context.run(report_progress, "kite", "wait", "x")


class KeepingHandler(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def test_log_record_has_its_caller_extra_and_error(log: RunLog) -> None:
    kept = KeepingHandler()
    log.logger.addHandler(kept)

    def helper() -> None:
        log.info("by the caller of this helper", stacklevel=2)

    log.info("plain")
    log.log(logging.INFO, "with a level", extra={"row": 7})
    helper()
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("with an error")
    here = "test_log_record_has_its_caller_extra_and_error"
    assert [record.funcName for record in kept.records] == [here] * 4
    assert kept.records[1].__dict__["row"] == 7
    assert kept.records[3].exc_info is not None
    assert str(kept.records[3].exc_info[1]) == "broken"


async def test_run_logger_logs_to_the_current_run(prefect_server: PrefectServer) -> None:
    seen = []

    @task
    async def step() -> None:
        seen.append((run_logger(), get_run_logger()))

    @flow
    async def run() -> None:
        seen.append((run_logger(), get_run_logger()))
        await step()

    await run()
    for ours, prefects in seen:
        assert isinstance(prefects, logging.LoggerAdapter)
        assert ours.logger is prefects.logger
        assert ours.extra == prefects.extra
    assert [ours.logger.name for ours, _ in seen] == ["prefect.flow_runs", "prefect.task_runs"]
    assert run_logger().logger.name == "sora"


@pytest.mark.parametrize("error", [OSError, RuntimeError, SystemExit])
async def test_failed_display_is_not_called_again_by_any_task(error: type[BaseException]) -> None:
    calls: list[Progress] = []

    def fail(news: Progress) -> None:
        calls.append(news)
        raise error

    async def row(number: int) -> None:
        report_progress(f"row-{number}", "submit", "sending")
        await asyncio.sleep(0)
        report_progress(f"row-{number}", "submit", "sent", done=True)

    async def batch() -> None:
        listen(fail)
        await asyncio.gather(*(row(number) for number in range(3)))

    await asyncio.create_task(batch())  # a task of its own: the listener stays in its context
    assert [item.key for item in calls] == ["row-0"]


def test_failed_count_is_not_called_again() -> None:
    counts = []

    def fail(videos: int) -> None:
        counts.append(videos)
        raise SystemExit

    context = copy_context()
    context.run(lambda: listen(lambda _: None, expect=fail))
    context.run(report_total, 3)
    context.run(report_total, 3)
    assert counts == [3]
