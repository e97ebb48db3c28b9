"""A run's log has our own errors once, with the reason and no traceback. Other errors keep their tracebacks."""

import logging
from collections.abc import Awaitable, Callable

import pytest
from prefect import flow, get_run_logger, task

from apixo import SoraError
from deployments.local.prefect_server import PrefectServer
from flows.check_setup import check_setup
from flows.collect_videos import collect_videos
from flows.record.pipeline_errors import UnconfirmedError
from flows.report_costs import report_costs
from flows.signals.run_log import LOGGERS, prepare_run_log


@pytest.fixture(autouse=True)
def prepared_run_log(prefect_server: PrefectServer) -> None:
    prepare_run_log()
    prepare_run_log()


def raise_own_error() -> None:
    raise UnconfirmedError("It is unknown whether kite was paid.", key="kite")


def log_own_error_and_raise() -> None:
    error = UnconfirmedError("It is unknown whether kite was paid.", key="kite")
    get_run_logger().error("%s", error)
    raise error


def warn_of_own_error_and_raise() -> None:
    error = UnconfirmedError("It is unknown whether kite was paid.", key="kite")
    get_run_logger().warning("%s", error)
    raise error


def raise_bug() -> None:
    raise ZeroDivisionError("nobody foresaw this")


async def logged_errors(fail: Callable[[], None], caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """The errors that a run logs if its task fails with `fail`."""

    @task(retries=0)
    async def step() -> None:
        fail()

    @flow
    async def run() -> None:
        await step()

    with pytest.raises((UnconfirmedError, ZeroDivisionError)):
        await run()
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("fail", [raise_own_error, log_own_error_and_raise, warn_of_own_error_and_raise])
async def test_own_error_is_logged_once_without_a_traceback(
    fail: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    (record,) = await logged_errors(fail, caplog)
    assert record.getMessage() == "It is unknown whether kite was paid."
    assert record.exc_info is None
    assert "Traceback" not in caplog.text
    assert caplog.messages.count("Finished in state Failed.") == 2


async def test_bug_keeps_its_tracebacks(caplog: pytest.LogCaptureFixture) -> None:
    found = await logged_errors(raise_bug, caplog)
    assert sum(record.exc_info is not None for record in found) == 2
    assert sum("Finished in state Failed(" in record.getMessage() for record in found) == 2


@pytest.mark.parametrize(
    "run",
    [
        lambda: report_costs(month="2020-13"),
        lambda: collect_videos(archive="no-such-block"),
        lambda: check_setup(api="no-such-block", archive="no-such-block"),
    ],
    ids=["report-costs", "collect-videos", "check-setup"],
)
async def test_flows_that_pay_nothing_log_their_error_once_too(
    run: Callable[[], Awaitable[object]], caplog: pytest.LogCaptureFixture
) -> None:
    for name in LOGGERS:
        for item in [item for item in logging.getLogger(name).filters if type(item).__name__ == "_ReasonOnce"]:
            logging.getLogger(name).removeFilter(item)
    with pytest.raises(SoraError):
        await run()
    assert "Traceback" not in caplog.text
    assert caplog.messages.count("Finished in state Failed.") == 1


def test_preparing_the_run_log_twice_adds_one_filter() -> None:
    for name in LOGGERS:
        filters = [item for item in logging.getLogger(name).filters if type(item).__name__ == "_ReasonOnce"]
        assert len(filters) == 1
