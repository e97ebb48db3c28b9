"""The end of a task: waits for it, and records it."""

from datetime import timedelta
from functools import partial
from http import HTTPStatus
from typing import Final

from apixo import (
    ApixoError,
    AuthenticationError,
    BadRequestError,
    Failed,
    GivenUpError,
    InProgress,
    NotSentError,
    Status,
    Succeeded,
    UnknownState,
    wait_for_end,
)
from apixo.errors import NO_END, NO_RESULT, NO_STATUS
from flows.record import superseded_tasks, transitions
from flows.record.advice import failed_error
from flows.record.generation import Generation, PaidTask, State
from flows.record.ledger import Entry
from flows.record.pipeline_errors import LedgerError, SubmissionRejectedError, SupersededError, VideoFailedError
from flows.resources import Resources
from flows.signals.events import emit, publish_end
from flows.signals.handed_over import opened
from flows.signals.progress import report_progress, run_logger
from flows.wording import counted, duration

MAX_WORD_CHARACTERS: Final = 100
"""How much of an undocumented state the record keeps."""
GIVEN_UP_AFTER: Final = timedelta(days=1)
"""How long a task may be in an undocumented state such as `expired`. After that, a user must decide."""
LONG_WAIT_SECONDS: Final = 30.0
"""From this wait on, the log also says how long such videos usually take."""
LOG_AGAIN_SECONDS: Final = 120.0
"""How often an unchanged state of a task is logged again."""
CALLBACK_WAIT_FACTOR: Final = 2.0
"""How many times longer the first poll waits if there is a callback: twice APIXO's 180 s are 6 minutes, the longest
that a video takes according to APIXO. The callback comes before that; if it is lost, polling begins then."""


async def wait_for_task(paid: PaidTask, found: Generation, resources: Resources) -> Succeeded | Failed:
    """Sleeps until the first poll is due or the callback comes, then polls until the task has ended.

    Raises:
        DeadlineError: it has not ended in time.
        AuthenticationError: the API key is invalid.
    """
    api, key, task_id = resources.api, paid.key, paid.task_id
    # Time before this run counts too, by the wall clock: a rerun need not repeat the initial wait.
    passed = (resources.clock.now() - (found.attempt.submitted_at or resources.clock.now())).total_seconds()
    factor = CALLBACK_WAIT_FACTOR if api.callback_url else 1.0
    first_wait_seconds, poll_interval_seconds = api.timing(paid.model)
    initial_wait_seconds = max(factor * first_wait_seconds - max(passed, 0.0), 0.0)
    # A short wait is not worth the lookup, which reads 20 records.
    usual = await resources.usual.of(found) if initial_wait_seconds >= LONG_WAIT_SECONDS else None
    usually = "" if usual is None else f" (usually {duration(usual)})"
    run_logger().info(
        "Waiting for task %s of %s%s: first poll in %.0f s%s, then every %g s, for at most %g s.",
        task_id, key, usually, initial_wait_seconds, " or when its callback comes" if api.callback_url else "",
        poll_interval_seconds, api.deadline_seconds,
    )  # fmt: skip
    report_progress(key, "wait", f"waiting{usually}", next_seconds=initial_wait_seconds)
    reported, reported_seconds = "", 0.0

    def report(answer: str, waited_seconds: float, pause_seconds: float) -> None:
        nonlocal reported, reported_seconds
        report_progress(key, "wait", f"{answer[:60]}{usually}", next_seconds=pause_seconds)
        if answer != reported or waited_seconds - reported_seconds >= LOG_AGAIN_SECONDS:
            run_logger().info(
                "%s: %s after %s%s, next poll in %.0f s.",
                key, answer[:200], duration(max(passed, 0.0) + waited_seconds), usually, pause_seconds,
            )  # fmt: skip
            reported, reported_seconds = answer, waited_seconds

    return await wait_for_end(
        lambda: poll(paid, resources),
        task_id=task_id,
        initial_wait_seconds=initial_wait_seconds,
        poll_interval_seconds=poll_interval_seconds,
        deadline_seconds=api.deadline_seconds,
        report=report,
        sleep=lambda seconds: resources.subscriber.sleep(key, seconds, resources.clock.sleep),
        monotonic=resources.clock.monotonic,
        rng=resources.clock.rng,
    )


async def poll(paid: PaidTask, resources: Resources) -> Status:
    """The provider's status of a task: as the callback receiver has just handed over, or else polled here.

    Raises:
        ApixoError: no usable answer.
    """
    handed_over = opened(resources.subscriber.take_end(paid.key), paid.task_id, resources.api)
    return handed_over or await resources.client.status_once(paid.task_id, model=paid.model)


async def poll_open_task(paid: PaidTask, known: Entry, resources: Resources) -> tuple[Entry, Status]:
    """Polls once. A task without an end for too long counts as failed, for a manual decision.

    Returns:
        The resulting record, which contains since when an undocumented state was seen, and the status that counts.

    Raises:
        ApixoError: no usable answer, and it is too early to give up.
    """
    age = resources.clock.now() - known.generation.attempt.since
    kept = timedelta(hours=resources.api.result_valid_hours)
    error = None
    try:
        status = await poll(paid, resources)
    except (NotSentError, AuthenticationError):  # the cause is this machine or this key, not the task
        raise
    except ApixoError as caught:
        if age < kept:
            raise
        error, status = caught, UnknownState(task_id=paid.task_id, state=NO_STATUS)
    if isinstance(status, Succeeded | Failed):
        return known, status
    word = status.state[:MAX_WORD_CHARACTERS] if isinstance(status, UnknownState) else None
    if word != known.generation.attempt.stands_as:
        known = await resources.ledger.change(
            paid.key, lambda now: transitions.stands_as(now, paid.task_id, word, now=resources.clock.now()), known=known
        )
    since = known.generation.attempt.stands_since or resources.clock.now()
    end = given_up(status, age=age, stood=resources.clock.now() - since, kept=kept)
    if end is None and error is not None:
        raise error
    return known, end or status


async def recheck_failure(entry: Entry, resources: Resources) -> Entry:
    """Polls a failed task once more before it is paid for again: APIXO may take a failure back, or we had given it up.

    This is the task of the last attempt that was not rejected. If APIXO now has a result, the task has succeeded. If
    APIXO had reported it as failed and now reports it as in progress, it is in progress again. A task that was given up
    may still be in progress; the user has decided not to wait any longer. A task whose result has become unavailable
    is not polled.

    Returns:
        The resulting record; the same entry object if no task has failed, or it may be paid for again.

    Raises:
        SubmissionRejectedError: APIXO had reported it as failed, and there is no usable answer now.
    """
    found = entry.generation
    attempt = next((item for item in reversed(found.attempts) if item.state is not State.REJECTED), None)
    problem = attempt.problem if attempt is not None and attempt.state is State.FAILED else None
    if attempt is None or attempt.task_id is None or problem is None or problem.code == NO_RESULT:
        return entry
    was_given_up = problem.kind == GivenUpError.__name__
    try:
        status = await resources.client.status(attempt.task_id, model=attempt.model)
    except ApixoError as error:
        if was_given_up or _says_unknown(error, resources.clock.now() - attempt.since, resources):
            return entry
        raise SubmissionRejectedError(
            f"{found.key} was not submitted again. A failed task is polled once more before another one is paid for, "
            f"and there was no usable answer about task {attempt.task_id}: {error.message} Nothing was paid; run it "
            "again later.",
            key=found.key,
            task_id=attempt.task_id,
        ) from error
    if not isinstance(status, Succeeded) and (was_given_up or not isinstance(status, InProgress)):
        return entry
    report_progress(found.key, "submit", f"task {attempt.task_id} has not failed after all, so nothing is paid")
    entry = await take_back_failure(found.key, attempt.number, attempt.task_id, resources, known=entry)
    if isinstance(status, Succeeded) and entry.generation.task_id == status.task_id:
        entry, _ = await record_end(entry.generation.task, entry, status, resources)  # it need not be waited for
    return entry


def _says_unknown(error: ApixoError, age: timedelta, resources: Resources) -> bool:
    """Whether APIXO itself, and not a gateway, says that it does not know a task. A 404 may also be about the model."""
    is_forgotten = error.code == HTTPStatus.NOT_FOUND and age >= timedelta(hours=resources.api.result_valid_hours)
    return error.enveloped and (isinstance(error, BadRequestError) or is_forgotten)


async def take_back_failure(
    key: str, number: int, task_id: str, resources: Resources, *, known: Entry | None = None
) -> Entry:
    """Resumes a task that was reported as failed, or given up, and has not failed after all: it is paid for."""
    again = partial(transitions.failure_taken_back, attempt_number=number, task_id=task_id, now=resources.clock.now())
    entry = await resources.ledger.change(key, again, known=known)
    if entry.generation.attempts[number - 1].state is not State.FAILED:  # else a user has named another task
        run_logger().warning("Task %s of %s has not failed after all. It continues.", task_id, key)
    return entry


async def give_up_result(
    paid: PaidTask, known: Entry, error: Exception, resources: Resources
) -> VideoFailedError | None:
    """Ends a succeeded task as failed if its result is no longer available. None: the result may still come.

    Args:
        error: why the result was unavailable this time.
    """
    now, found = resources.clock.now(), known.generation
    age = now - (found.succeeded_at or found.attempt.claimed_at)
    if age < timedelta(hours=resources.api.result_valid_hours):
        return None
    entry = await resources.ledger.change(
        paid.key, lambda current: transitions.stands_as(current, paid.task_id, NO_RESULT, now=now), known=known
    )
    if now - (entry.generation.attempt.stands_since or now) < GIVEN_UP_AFTER:
        return None
    lost = Failed(
        task_id=paid.task_id,
        state=NO_RESULT,
        fail_code=NO_RESULT,
        fail_message=(
            f"it was finished {counted(age.days, 'day')} ago, and its result is unavailable, so polling has "
            f"stopped: {error}"
        ),
    )
    entry = await resources.ledger.change(
        paid.key, lambda current: transitions.failed(current, lost, now=now, after=State.SUCCEEDED)
    )
    if entry.generation.state is not State.FAILED:
        return None
    await publish_end(entry.generation, resources.ledger, resources.archive, resources.events, is_new=True)
    return failed_error(entry.generation, resources.options)


def given_up(status: InProgress | UnknownState, *, age: timedelta, stood: timedelta, kept: timedelta) -> Failed | None:
    """A failure for a task that has not ended for too long; None while an end may come. Pure.

    Args:
        age: the time since it was submitted.
        stood: the time since its state was first seen, if that is undocumented.
        kept: how long APIXO keeps a result.
    """
    lasts = isinstance(status, UnknownState) and stood >= GIVEN_UP_AFTER
    # A missing answer may be temporary: an outage of an hour must not end a task just because it is old.
    if not (lasts or (age >= kept and status.state != NO_STATUS)):
        return None
    reported = "gives no status of the task" if status.state == NO_STATUS else f"calls the task {status.state!r}"
    days = (stood if lasts else age).days
    since = "since that was first seen" if lasts else "after its submission"
    return Failed(
        task_id=status.task_id,
        state=status.state,
        fail_code=NO_STATUS if status.state == NO_STATUS else NO_END,
        fail_message=(
            f"APIXO still {reported} {counted(days, 'day')} {since}, and gives neither a result nor a reason. Polling "
            "has stopped"
        ),
    )


async def record_end(
    paid: PaidTask, known: Entry, status: Succeeded | Failed, resources: Resources
) -> tuple[Entry, Succeeded]:
    """Records a task's end in the ledger. Returns the record and the success.

    The record may continue with another task by now. If the provider accepted this task as well, it was paid for, and
    its video is still archived.

    Raises:
        VideoFailedError: the end was a failure.
        SupersededError: the generation has another task now, and this one was named by mistake, or failed.
    """
    key = paid.key
    for remark in status.remarks:
        run_logger().warning("%s: %s", key, remark)
    if isinstance(status, Failed):
        failed = partial(transitions.failed, status=status, now=resources.clock.now())
        entry = await resources.ledger.change(key, failed, known=known)
        if entry.generation.state is State.FAILED:
            await publish_end(entry.generation, resources.ledger, resources.archive, resources.events, is_new=True)
            raise failed_error(entry.generation, resources.options)
        raise LedgerError(f"{key} is {entry.generation.state}, but APIXO says failed.", key=key, task_id=paid.task_id)
    succeeded = partial(transitions.succeeded, status=status, now=resources.clock.now())
    try:
        entry = await resources.ledger.change(key, succeeded, known=known)
    except SupersededError:
        current = await resources.ledger.read(key)
        if current is None or not superseded_tasks.is_superseded(current.generation, paid.task_id):
            raise
        run_logger().warning(
            "%s continues with task %s. Task %s is paid and finished as well: its video is archived alongside.", key,
            current.generation.task_id, paid.task_id,
        )  # fmt: skip
        return current, status
    run_logger().info("APIXO finished task %s of %s.", paid.task_id, key)
    emit("succeeded", entry.generation)
    report_progress(key, "wait", "finished", done=True)
    return entry, status
