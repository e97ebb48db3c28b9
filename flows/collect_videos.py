"""The flow `collect-videos`: processes all open generations. It polls, fetches and archives; it never submits."""

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Final, Literal

from prefect import flow
from prefect.runtime import deployment
from pydantic import BaseModel, Field

from apixo import ApixoError, AuthenticationError, Failed, NotSentError, SoraError, Succeeded
from apixo.redaction import excerpt
from flows.clock import Clock
from flows.concurrency import at_most
from flows.media.media_errors import MediaError
from flows.record import superseded_tasks, transitions
from flows.record.advice import failed_error, unconfirmed_error
from flows.record.generation import Generation, State
from flows.record.keys import Key
from flows.record.ledger import Entry, Ledger
from flows.record.pipeline_errors import PipelineError, SupersededError, VideoFailedError
from flows.resources import Resources
from flows.signals.artifacts import plain, show_markdown
from flows.signals.events import emit, publish_end
from flows.signals.progress import run_logger
from flows.signals.run_log import prepare_run_log
from flows.signals.runs import remove_waiting_runs, tag_run
from flows.steps import retrieve
from flows.submission import reconcile, wait_for_answer
from flows.task_end import GIVEN_UP_AFTER, give_up_result, poll_open_task, record_end
from flows.wording import counted

AT_ONCE: Final = 16
"""Generations processed at the same time: enough to poll thousands in a minute, few enough for one disk."""
EXPIRING_AFTER: Final = timedelta(hours=12)
"""The age at which warnings about a result begin. APIXO keeps it for 15 days, or by older pages for 24 hours, of which
half are left then."""

RECONCILED_WITHIN: Final = timedelta(hours=1)
"""How long after an unclear payment the collector searches the store's tasks for it. Later, only a rerun or a manual
decision does."""

QUIET_SECONDS: Final = 6.0
"""How long the collector stays subscribed after its last work, twice. Starting another process takes as long, and a run
that a further callback triggers must wait for this one. Longer than the 5 s after which Prefect has stored an event."""
SUBSCRIBED_SECONDS: Final = 240.0
"""The longest that it stays subscribed: it ends before the next scheduled run, however many callbacks come."""
CHECK_SECONDS: Final = 0.5

What = Literal["archived", "pending", "failed", "rejected", "unconfirmed", "unknown", "error"]


class Collected(BaseModel):
    """The result for one open generation."""

    key: str
    what: What = Field(description="`error`: it could not be processed this time; the next run tries again.")
    task_id: str | None = None
    note: str = Field(default="", description="What a person should know and do.")
    expiring: bool = Field(
        default=False, description="Finished for 12 hours, or submitted so long ago, and not archived."
    )


class CollectionError(PipelineError):
    """Some generations could not be processed this time. The next run tries again."""


@flow(name="collect-videos", persist_result=False, retries=0)
async def collect_videos(
    keys: list[Key] | None = None, detached_only: bool = False, api: str = "default", archive: str = "default"
) -> list[Collected]:
    """Polls every open generation once, archives what is finished, and lists manual decisions. Never submits.

    Args:
        keys: The generations to process; empty means all that are open.
        detached_only: Leave out those whose run waits for them: it learns of their end as soon as the collector does.
        api: Name of the `apixo-api` block.
        archive: Name of the `video-archive` block.
    """
    prepare_run_log()
    await remove_waiting_runs({"keys": keys, "detached_only": detached_only, "api": api, "archive": archive})
    async with Resources.of_blocks(api, archive) as resources:
        found = await _collect_while_notified(keys, resources, detached_only=detached_only)
    await _report(found)
    await tag_run((), name=run_name(found))
    failed = [item for item in found if item.what == "error"]
    if failed:
        raise CollectionError(
            f"{len(failed)} of {len(found)} generations could not be processed; the next run tries again. "
            + " ".join(f"{item.key}: {item.note}" for item in failed[:10])
        )
    return found


def run_name(found: Sequence[Collected]) -> str:
    """The name of a run after it ended: by what it archived, or else by what needs a manual decision. Pure."""
    for what, verb in (("archived", "archived"), ("unconfirmed", "unconfirmed:"), ("failed", "failed:")):
        keys = [item.key for item in found if item.what == what]
        if keys:
            return f"{verb} {keys[0]}{f' and {len(keys) - 1} more' if len(keys) > 1 else ''}"
    return f"collect: {len(found)} open" if found else "collect: nothing open"


async def _collect_while_notified(
    keys: Sequence[str] | None, resources: Resources, *, detached_only: bool
) -> list[Collected]:
    """Processes these generations, then those whose callback came in the last minute or comes meanwhile.

    The deployment has one run at a time: without this, such a callback would have to wait until this run ends, and the
    next run would poll everything that is open.
    """
    subscribes = bool(resources.api.callback_url and deployment.id)
    if subscribes:
        resources.subscriber.subscribe()
    found = {item.key: item for item in await collect(keys, resources, detached_only=detached_only)}
    if not subscribes:
        return list(found.values())
    ends = resources.clock.monotonic() + SUBSCRIBED_SECONDS
    for again in (False, True):
        if again:
            await resources.subscriber.resubscribe()
        quiet_since = resources.clock.monotonic()
        while (now := resources.clock.monotonic()) < min(quiet_since + QUIET_SECONDS, ends):
            await resources.clock.sleep(min(CHECK_SECONDS, quiet_since + QUIET_SECONDS - now))
            notified = resources.subscriber.take_notified()
            if notified:  # some are replayed events of generations that are closed by now
                notified &= set(await resources.ledger.open_keys())
            if notified:
                more = await collect(sorted(notified), resources, detached_only=detached_only)
                found |= {item.key: item for item in more}
                quiet_since = resources.clock.monotonic()
    return [found[key] for key in sorted(found)]


async def collect(keys: Sequence[str] | None, resources: Resources, *, detached_only: bool = False) -> list[Collected]:
    """Processes these generations, or all open ones, several at a time, sorted by key.

    `detached_only` skips those that a run waits for, according to the record.

    Raises:
        AuthenticationError: the API key is invalid, so nothing can be polled.
    """
    wanted = sorted(set(keys)) if keys else await resources.ledger.open_keys()
    run_logger().info("Processing %s.", counted(len(wanted), "generation"))
    key_errors: list[AuthenticationError] = []

    async def one(key: str) -> Collected:
        try:
            if key_errors:  # do not poll again with this key, but still warn about expiring results
                raise key_errors[0]
            seen = await _process(key, resources, detached_only=detached_only)
        except Exception as error:  # noqa: BLE001 - a bug in one must not keep others from being collected
            if isinstance(error, AuthenticationError):
                key_errors.append(error)
            elif isinstance(error, SoraError):
                run_logger().error("%s could not be processed: %s", key, error)
            else:
                run_logger().exception("%s failed with an unexpected error.", key)
            seen = await _not_processed(key, error, resources)
        if seen.expiring:
            await _warn(key, resources.ledger, resources.clock)
        return seen

    collected = await at_most(AT_ONCE, one, wanted)
    if key_errors:
        raise key_errors[0]
    return collected


async def _process(key: str, resources: Resources, *, detached_only: bool) -> Collected:
    entry = await resources.ledger.read(key)
    if entry is None:  # its marker is written before its claim: a run may be about to claim it
        return Collected(key=key, what="unknown", note="The ledger has no record of it (yet).")
    if detached_only and _is_waited_for(entry.generation, resources):
        return _collected(entry.generation, resources)
    if entry.generation.state is State.CLAIMED:
        entry = await wait_for_answer(entry, resources.ledger, resources.clock)
    elif entry.generation.state is State.UNCONFIRMED and _age(entry.generation, resources.clock) < RECONCILED_WITHIN:
        entry = await reconcile(entry, resources.ledger, resources.clock)
    if entry.generation.unarchived_superseded:
        entry = await _collect_superseded(entry, resources)
    found = entry.generation
    match found.state:
        case State.SUBMITTED:
            return await _poll(entry, resources)
        case State.SUCCEEDED:
            return await _collect_result(entry, resources)
        case State.ARCHIVED | State.FAILED:  # its run died before the event, or Prefect was unavailable
            await publish_end(found, resources.ledger, resources.archive, resources.events)
        case State.REJECTED:
            await resources.ledger.close(found)
    return _collected(found, resources)


async def _collect_result(entry: Entry, resources: Resources) -> Collected:
    """Archives a task that has succeeded. Gives up a result that stays unavailable after APIXO may have deleted it."""
    paid = entry.generation.task
    try:
        return _collected(await retrieve(paid, entry, None, resources), resources)
    except (NotSentError, AuthenticationError):  # the cause is this machine or this key, not the result
        raise
    except (MediaError, ApixoError) as error:
        if await give_up_result(paid, entry, error, resources) is None:
            raise
    return _collected((await resources.ledger.existing(paid.key)).generation, resources)


def _is_waited_for(found: Generation, resources: Resources) -> bool:
    """Whether a run waits for it, according to the record. A run that died counts as waiting until its deadline."""
    age = _age(found, resources.clock)
    return found.attempt.waited_for and age < timedelta(seconds=resources.api.deadline_seconds)


async def _collect_superseded(entry: Entry, resources: Resources) -> Entry:
    """Archives the videos of superseded tasks, and records which of them have none. Returns the resulting record."""
    for paid in entry.generation.unarchived_superseded:
        attempt = entry.generation.attempts[paid.attempt_number - 1]
        age = resources.clock.now() - attempt.since
        # By then APIXO has deleted the result, even if the task could not be polled for a while.
        too_old = age > timedelta(hours=resources.api.result_valid_hours) + GIVEN_UP_AFTER
        why = None
        try:
            status = await resources.client.status_once(paid.task_id, model=paid.model)
            if isinstance(status, Succeeded):
                await retrieve(paid, entry, status, resources)
            elif isinstance(status, Failed):
                text = f"APIXO says {status.fail_code or 'failed'}: {status.fail_message}"
                why = excerpt(text.encode("utf-8", "replace"))
            elif too_old:
                why = f"APIXO still calls it {status.state!r}"
        except SupersededError:
            pass  # the normal end: its video is archived alongside
        except AuthenticationError:
            raise
        except SoraError as error:
            why = str(error) if too_old and not isinstance(error, NotSentError) else None
            run_logger().warning("Task %s of %s could not be archived alongside: %s", paid.task_id, paid.key, error)
        except Exception:  # noqa: BLE001 - a bug here must not keep the task that counts from being collected
            run_logger().exception("Task %s of %s failed with an unexpected error.", paid.task_id, paid.key)
        if why is not None:
            run_logger().error("Task %s of %s is paid but will not produce a video: %s", paid.task_id, paid.key, why)
            noted = partial(superseded_tasks.ended, task_id=paid.task_id, why=why, now=resources.clock.now())
            await resources.ledger.change(paid.key, noted)
    return await resources.ledger.read(entry.generation.key) or entry


def _age(found: Generation, clock: Clock) -> timedelta:
    return clock.now() - found.attempt.since


async def _poll(entry: Entry, resources: Resources) -> Collected:
    paid = entry.generation.task
    entry, status = await poll_open_task(paid, entry, resources)
    if not isinstance(status, Succeeded | Failed):
        return _collected(entry.generation, resources)
    try:
        ended, succeeded = await record_end(paid, entry, status, resources)
    except VideoFailedError:
        return _collected((await resources.ledger.existing(paid.key)).generation, resources)
    return _collected(await retrieve(paid, ended, succeeded, resources), resources)


async def _not_processed(key: str, error: Exception, resources: Resources) -> Collected:
    try:
        entry = await resources.ledger.read(key)
    except SoraError:
        entry = None
    collected = _collected(entry.generation, resources) if entry else Collected(key=key, what="error")
    return collected.model_copy(update={"what": "error", "note": str(error) or type(error).__name__})


def _collected(found: Generation, resources: Resources) -> Collected:
    """The report about a record in its current state; logs a warning if its result will expire soon."""
    state = found.state
    open_states = (State.CLAIMED, State.SUBMITTED, State.SUCCEEDED)
    what: What = "pending" if state in open_states else state.value  # type: ignore[assignment] # mypy sees only a str
    collected = Collected(key=found.key, what=what, task_id=found.task_id)
    if what == "unconfirmed":
        collected.note = str(unconfirmed_error(found, resources.options))
    elif what == "failed":
        collected.note = str(failed_error(found, resources.options))
    age = _age(found, resources.clock) if found.succeeded_at is None else resources.clock.now() - found.succeeded_at
    if found.unarchived_superseded:
        others = ", ".join(task.task_id for task in found.unarchived_superseded)
        collected.note = f"{collected.note} Paid for as well, and not archived yet: {others}.".strip()
    waits = what in ("pending", "unconfirmed")
    if (waits or found.unarchived_superseded) and age > EXPIRING_AFTER:
        collected.expiring = True
        since = "Submitted" if found.succeeded_at is None else "Finished"
        missing = " and not archived" if waits else ""
        collected.note = (
            f"{since} {age // timedelta(hours=1)} hours ago{missing}. APIXO keeps a result for "
            f"{resources.api.result_valid_hours:g} hours. {collected.note}"
        ).strip()
        run_logger().warning("%s expires soon. %s", found.key, collected.note)
    return collected


async def _warn(key: str, ledger: Ledger, clock: Clock) -> None:
    """Publishes once a day that its result will expire."""
    now = clock.now()
    try:
        found = (await ledger.change(key, lambda current: transitions.warned(current, now=now))).generation
    except SoraError as error:  # the next run of the collector does it
        run_logger().warning("Could not record the warning that %s expires soon: %s", key, error)
        return
    if found.warned_at == now:
        emit("expiring", found, age_days=(now - found.attempt.since).days)


async def _report(found: list[Collected]) -> None:
    """Publishes an artifact, but only if there is something to report: this flow runs every few minutes."""
    noteworthy = [item for item in found if item.expiring or item.what not in ("pending", "unknown")]
    for what in ("unconfirmed", "failed"):
        for item in noteworthy:
            if item.what == what:
                run_logger().warning("%s is %s. %s", item.key, what, item.note)
    if not noteworthy:
        return
    rows = [
        f"| {plain(item.key)} | {item.what}{', expiring' if item.expiring else ''} | {plain(item.task_id or '')} "
        f"| {plain(item.note)} |"
        for item in noteworthy
    ]
    await show_markdown(
        "\n".join(["| key | | task | what to do |", "|---|---|---|---|", *rows]) + "\n",
        key="collect-videos",
        description=f"{counted(len(found), 'generation')} processed",
    )
