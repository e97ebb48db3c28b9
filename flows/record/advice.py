"""Advice for users about a generation that does not continue by itself, with the exact commands."""

import re
from typing import NamedTuple

from apixo import VideoRequest
from apixo.catalog import find
from flows.record.generation import Generation, PaidTask, Problem, State
from flows.record.pipeline_errors import DuplicateRequestError, KeyConflictError, UnconfirmedError, VideoFailedError
from flows.wording import utc


class Advice(NamedTuple):
    """What the user needs to know about a run that ended without its video."""

    title: str
    paid: str
    """Whether it was paid, as a sentence."""
    steps: tuple[str, ...]
    """What to do, in order. Commands are between backticks."""


GO_ON = "`sora resolve {key} --task-id TASK_ID{options}`"
PAY_AGAIN = "`sora resolve {key} --resubmit{options}`"
UNREADABLE = Advice(
    title="Stopped",
    paid="Unknown here: the ledger could not be read.",
    steps=("Make the archive available again, then run it again with the same key. That pays for nothing twice.",),
)
"""When the store does not answer, so nothing is known."""
NOTHING_SENT = Advice(
    title="Not submitted",
    paid="No. Nothing was sent.",
    steps=("Fix the reason, then run it again with the same key, for instance as the deployment `generate-video`.",),
)
"""When nothing was ever sent under the key, or not this request."""


def advice(found: Generation, options: str) -> Advice:
    """What the user can do about a generation, with the command and the deployment for it. Pure.

    Args:
        options: the options that name the blocks in commands.
    """
    key, attempt = found.key, found.attempt
    task = (attempt.task_id or "unknown").replace("`", "'")  # the provider's text
    go_on, pay_again = (command.format(key=key, options=options) for command in (GO_ON, PAY_AGAIN))
    form = f"a Custom run of the deployment `resolve-video` with the key `{key}`"
    match found.state:
        case State.UNCONFIRMED:
            return Advice(
                title="Unconfirmed",
                paid=f"It is unknown. It is not resent automatically (attempt {attempt.number}).",
                steps=(
                    f"Look in your APIXO account for a task of {utc(attempt.claimed_at)}.",
                    f"There is one: {go_on}, or {form}, the decision to go on, and the task's id. It pays nothing.",
                    (
                        f"There is none: {pay_again}, or the same with the decision to submit once more and attempt "
                        f"{attempt.number}. It pays."
                    ),
                ),
            )
        case State.FAILED:
            return _after_failure(found, task, go_on, pay_again, form)
        case State.REJECTED:
            earlier = "Not this attempt: APIXO rejected it. An earlier one was, or may have been."
            return NOTHING_SENT._replace(
                title="Rejected", paid=earlier if found.may_be_paid else "No. APIXO rejected it."
            )
        case State.ARCHIVED:
            return Advice(
                title="Archived",
                paid=f"Yes, as task `{task}`. Its video is in the archive.",
                steps=(f"To see it: {show_command(key, options, ' --link')}.",),
            )
        case State.CLAIMED:
            return Advice(
                title="Stopped",
                paid="Unknown so far: the request is being sent, or the process that sent it has died.",
                steps=("Run it again with the same key. It waits for the answer, and pays for nothing twice.",),
            )
        case State.SUBMITTED | State.SUCCEEDED:
            return Advice(
                title="Not archived yet",
                paid=f"Yes, as task `{task}`. Nothing is lost.",
                steps=(
                    "Nothing, if the deployment `collect-videos` runs: it archives finished videos every 5 minutes.",
                    f"To do it now: `sora collect{options}`, or run it again with the same key, which pays nothing.",
                ),
            )


def _after_failure(found: Generation, task: str, go_on: str, pay_again: str, form: str) -> Advice:
    again = f"{pay_again}, or {form}, the decision to submit once more and attempt {found.attempt.number}."
    if found.given_up:
        return Advice(
            title="Given up",
            paid=f"Yes, as task `{task}`. APIXO gave neither a result nor a reason in time.",
            steps=(
                "Look at the task in your APIXO account.",
                (
                    f"It has a result, or is in progress: {go_on.replace('TASK_ID', task)}, or {form}, the decision to "
                    "go on, and the task's id. It pays nothing."
                ),
                f"It has none: to pay for another try, {again}",
            ),
        )
    other = "The same request cannot succeed: change it, and give it a new key."
    return Advice(
        title="Failed",
        paid=f"APIXO accepted it as task `{task}`. Whether it charges for failures is undocumented.",
        steps=(other if found.permanently_failed else f"To pay for another try: {again}",),
    )


def show_command(key: str, options: str, what: str = "") -> str:
    """The command that shows a generation. Of the options that name the blocks, it has only the archive's."""
    return f"`sora show {key}{what}{''.join(re.findall(' --archive [^ ]+', options))}`"


def not_archived_sentence(paid: PaidTask, options: str, result_valid_hours: float) -> str:
    """For a run that ends with an error: its video is paid, and what to do. `options` name the blocks."""
    command = f"sora resolve {paid.key} --task-id {paid.task_id}{options}"
    return (
        f"{paid.key} is paid, as task {paid.task_id}, and not archived yet. Nothing is lost: run it again with the "
        f"same key, or run `{command}`. Neither pays again. APIXO keeps its result for {result_valid_hours:g} hours."
    )


def unconfirmed_error(generation: Generation, options: str) -> UnconfirmedError:
    """The error with what the user needs to know to resolve it. `options` name the blocks for the commands."""
    key, attempt = generation.key, generation.attempt
    why = attempt.problem.message if attempt.problem else "no answer was recorded"
    return UnconfirmedError(
        f"It is unknown whether {key} was paid: {why} (attempt {attempt.number}, claimed "
        f"{utc(attempt.claimed_at)} by flow run {attempt.claimed_by.flow_run_id or 'none'}). It is "
        "not resent automatically. Look for its task in that run's log, in the event sora.generation.submitted, and in "
        f"your APIXO account at that time. Then run `sora resolve {key} --task-id TASK_ID{options}` if there is one, "
        f"or `sora resolve {key} --resubmit{options}` if there is none. In the Prefect UI the deployment resolve-video "
        "does both.",
        key=key,
    )


def conflict_error(generation: Generation) -> KeyConflictError:
    """The error for a key that belongs to another request."""
    return KeyConflictError(
        f"The key {generation.key} belongs to another request (claimed {generation.created_at:%Y-%m-%d %H:%M} UTC: "
        f"{generation.request.prompt[:80]!r}). One key is one video: use a new key for a new request.",
        key=generation.key,
    )


def failed_error(generation: Generation, options: str) -> VideoFailedError:
    """The provider's reason, and whether another try makes sense. `options` name the blocks for the command."""
    failure = generation.failure()
    go_on, pay_again = (command.format(key=generation.key, options=options) for command in (GO_ON, PAY_AGAIN))
    again = f"run {pay_again}, or rerun its deployment's run in the Prefect UI"
    advice = "" if generation.permanently_failed else f" To pay for another try, {again}."
    if generation.given_up:
        advice = f" Run {go_on.replace('TASK_ID', str(generation.task_id))}, which pays nothing.{advice}"
    return VideoFailedError(
        f"{generation.key}: {failure}{advice}",
        key=generation.key,
        task_id=generation.task_id,
        fail_code=failure.fail_code,
        permanent=generation.permanently_failed,
    )


def task_of_another_key(task_id: str, key: str, options: str) -> Problem:
    """The problem of a paid call whose answer is a task that a user has named for another generation."""
    return Problem(
        kind="TaskOfAnotherKey",
        message=(
            f"APIXO answered with task {task_id}, which the ledger lists under {key}. If it was named there by "
            f"mistake, first name the right one with `sora resolve {key} --task-id …{options}`"
        ),
    )


def unknown_model(request: VideoRequest) -> str | None:
    """A warning that a model is unknown, so its request is sent unchecked; None: the catalog has all models."""
    unknown = ", ".join(model for model in request.models if find(model) is None)
    return f"the catalog does not have {unknown}: the request is sent as it is, unchecked" if unknown else None


def duplicate_sentence(key: str, first_key: str) -> str:
    """A sentence for the log and for dry runs: the same request was submitted before."""
    return f"{key} requests the same video as {first_key}, which was submitted before: it would be paid for again"


def duplicate_error(key: str, first_key: str, options: str) -> DuplicateRequestError:
    """The error for a duplicate, if duplicates are rejected."""
    return DuplicateRequestError(
        f"{duplicate_sentence(key, first_key)}. Duplicates are rejected, so nothing was sent. "
        f"{show_command(first_key, options)} shows that video; allow duplicates to get another one.",
        key=key,
    )
