"""The payment thread survives whatever logging raises in it. If it does die, waiting callers get an error at once."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from apixo import ApixoClient
from blocks import ApixoApi, VideoArchive
from deployments.sandbox import Fault, SandboxServer
from flows.paid_call import PaymentThread, PaymentThreadDiedError, SpendGuard
from flows.record.generation import State
from flows.record.ledger import Ledger
from flows.record.pipeline_errors import UnconfirmedError
from flows.resources import PayingResources, Resources
from flows.submission import Submission
from tests.flows.generations import recorded
from tests.support import KITE, unique


class BrokenConsole(logging.Handler):
    """A console whose pipe is closed, as rich handles it: it ends the thread that logs."""

    def emit(self, record: logging.LogRecord) -> None:
        raise SystemExit(1)


@pytest.fixture
def broken_console() -> Iterator[None]:
    """Every log call of this project or of httpx ends the thread that makes it."""
    handler = BrokenConsole()
    loggers = [logging.getLogger(name) for name in ("sora", "httpx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.fixture
async def payments(api: ApixoApi, archive: VideoArchive) -> AsyncIterator[PaymentThread]:
    thread = PaymentThread(api, archive)
    yield thread
    await thread.aclose()


async def test_answer_is_recorded_before_anything_is_logged(
    key: str, resources: PayingResources, sandbox: SandboxServer, broken_console: None
) -> None:
    made = await Submission(key, KITE, resources).run()
    assert made.generation.state is State.SUBMITTED
    (paid,) = sandbox.record.charged()
    found = await recorded(key, resources)
    assert (found.state, found.task_id) == (State.SUBMITTED, paid.task_id)


async def test_other_calls_survive_one_that_ends_the_thread(payments: PaymentThread) -> None:
    async def good(client: ApixoClient, ledger: Ledger, stopping: threading.Event) -> int:
        await asyncio.sleep(0.2)
        return 7

    async def bad(client: ApixoClient, ledger: Ledger, stopping: threading.Event) -> int:
        await asyncio.sleep(0.05)
        raise SystemExit(1)

    results = await asyncio.gather(
        *(payments.run(bad if number == 3 else good) for number in range(8)), return_exceptions=True
    )
    assert [result for result in results if result == 7] == [7] * 7
    assert isinstance(results[3], PaymentThreadDiedError)
    assert await payments.run(good) == 7


async def test_waiting_caller_gets_error_at_once_when_the_thread_dies(
    api: ApixoApi, archive: VideoArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = PaymentThread(api, archive)

    async def hang(client: ApixoClient, ledger: Ledger, stopping: threading.Event) -> None:
        def die() -> None:
            raise RuntimeError("the loop itself is broken")

        monkeypatch.setattr(thread._loop, "_run_once", die)
        await asyncio.get_running_loop().create_future()

    started = time.monotonic()
    with pytest.raises(PaymentThreadDiedError, match="has died"):
        await asyncio.wait_for(thread.run(hang), 60)
    with pytest.raises(PaymentThreadDiedError):
        await thread.run(hang)
    await thread.aclose()
    assert time.monotonic() - started < 60


async def test_blocked_log_does_not_delay_recording(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    """A console that nobody reads blocks any thread that logs."""
    gate = threading.Event()

    class BlockedConsole(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if threading.current_thread().name != "MainThread":
                gate.wait(20)

    handler, logger = BlockedConsole(), logging.getLogger("sora")
    logger.addHandler(handler)
    try:
        sandbox.faults.add(Fault(call="submit", kind="hang_after", seconds=30))
        with pytest.raises(UnconfirmedError):
            await asyncio.wait_for(Submission(key, KITE, resources).run(), 10)
        assert (await recorded(key, resources)).state is State.UNCONFIRMED
    finally:
        gate.set()
        logger.removeHandler(handler)


async def test_resources_without_payments_have_nothing_that_can_pay(api: ApixoApi, archive: VideoArchive) -> None:
    """Code that submits takes `PayingResources`, which mypy checks. The collector and the receiver have none."""
    async with Resources(api, archive) as collecting:
        assert not hasattr(collecting.client, "submit_once")
        assert not any(isinstance(value, PaymentThread | SpendGuard) for value in vars(collecting).values())


async def test_claims_never_run_ahead_of_paid_calls(
    archive: VideoArchive, resources: PayingResources, sandbox: SandboxServer
) -> None:
    """A run does all its waiting before the claim, so a crash leaves no claim whose request was never sent."""
    slow = resources.api.model_copy(update={"requests_per_minute": 120.0})  # two at once, then two a second
    keys = [unique("k") for _ in range(6)]
    most = 0
    async with PayingResources(slow, archive) as own:
        submitting = [asyncio.create_task(Submission(key, KITE, own).run()) for key in keys]
        while not all(task.done() for task in submitting):
            claimed = len(await resources.ledger.read_all(keys))
            most = max(most, claimed - len(sandbox.record.submits()))
            await asyncio.sleep(0.05)  # a claim that ran ahead would be visible for half a second
        await asyncio.gather(*submitting)
    assert most <= 3
    assert len(sandbox.record.charged()) == 6


async def test_payment_thread_ends_even_if_closing_fails(
    api: ApixoApi, archive: VideoArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    async def run() -> None:
        async with PayingResources(api, archive) as own:
            await Submission(unique("k"), KITE, own).run()
            threads.append(own.payments._thread)
            monkeypatch.setattr(own.spending, "aclose", cancelled)

    threads: list[threading.Thread] = []
    with pytest.raises(asyncio.CancelledError):
        await run()
    assert not threads[0].is_alive()
