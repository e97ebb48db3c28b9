"""What a person is told about a generation that does not go on by itself, with the exact commands."""

from typing import NamedTuple

from apixo import VideoRequest
from apixo.catalog import find
from flows.record.errors import DuplicateRequestError, KeyConflictError, UnconfirmedError, VideoFailedError
from flows.record.generation import Generation, Problem, State


class Advice(NamedTuple):
    """What a person has to know of a run that did not end with its video."""

    title: str
    paid: str
    """Whether it was paid, in a sentence."""
    steps: tuple[str, ...]
    """What to do, in order. Commands stand between backticks."""


GO_ON = "`sora resolve {key} --task-id TASK_ID{options}`"
PAY_AGAIN = "`sora resolve {key} --resubmit{options}`"
UNREADABLE = Advice(
    title="Stopped",
    paid="Not known here: the ledger could not be read.",
    steps=("Bring the archive back, then run it again with the same key. That pays for nothing twice.",),
)
"""Where nothing can be said, as the store does not answer."""
NOTHING_SENT = Advice(
    title="Not submitted",
    paid="No. Nothing was sent.",
    steps=(
        "Do what the reason says, then run it again with the same key, here or as the deployment `generate-video`.",
    ),
)
"""Where nothing was ever sent under the key, or not this request."""


def advice(found: Generation, options: str) -> Advice:
    """What a person can do about a generation, with the command and the deployment that does it. Pure.

    Args:
        options: what names the blocks in commands.
    """
    key, attempt = found.key, found.attempt
    task = (attempt.task_id or "unknown").replace("`", "'")  # the provider's text
    go_on, pay_again = (command.format(key=key, options=options) for command in (GO_ON, PAY_AGAIN))
    form = f"a Custom run of the deployment `resolve-video` with the key `{key}`"
    match found.state:
        case State.UNCONFIRMED:
            return Advice(
                title="Unconfirmed",
                paid=f"Nobody can know yet. It is not sent again by itself (attempt {attempt.number}).",
                steps=(
                    f"Look in your APIXO account for a task of {attempt.claimed_at:%Y-%m-%d %H:%M:%S} UTC.",
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
            return NOTHING_SENT._replace(title="Refused", paid="No. APIXO did not take it.")
        case State.ARCHIVED:
            return Advice(
                title="Archived",
                paid=f"Yes, as task `{task}`. Its video is in the archive.",
                steps=(f"To see it: `sora show {key} --link`.",),
            )
        case State.CLAIMED:
            return Advice(
                title="Stopped",
                paid="Not known yet: the request is being sent, or whoever sent it has died.",
                steps=("Run it again with the same key. It waits for the answer, and pays for nothing twice.",),
            )
        case State.SUBMITTED | State.SUCCEEDED:
            return Advice(
                title="Not archived yet",
                paid=f"Yes, as task `{task}`. Nothing is lost.",
                steps=(
                    "Nothing, if the deployment `collect-videos` runs: it archives the video, every 5 minutes.",
                    f"To do it now: `sora collect{options}`, or run it again with the same key, which pays nothing.",
                ),
            )


def _after_failure(found: Generation, task: str, go_on: str, pay_again: str, form: str) -> Advice:
    again = f"{pay_again}, or {form}, the decision to submit once more and attempt {found.attempt.number}."
    if found.given_up:
        return Advice(
            title="Given up",
            paid=f"Yes, as task `{task}`. APIXO named neither a result nor a reason in time.",
            steps=(
                "Look at the task in your APIXO account.",
                (
                    f"It has a result, or is under way: {go_on.replace('TASK_ID', task)}, or {form}, the decision to "
                    "go on, and the task's id. It pays nothing."
                ),
                f"It has none: to pay for another try, {again}",
            ),
        )
    other = "The same request cannot succeed: change it, and give it a new key."
    return Advice(
        title="Failed",
        paid=f"APIXO took it as task `{task}`. Whether it charges for a failure is not documented.",
        steps=(other if found.permanently_failed else f"To pay for another try: {again}",),
    )


def unconfirmed_error(generation: Generation, options: str) -> UnconfirmedError:
    """What a person has to know to resolve it. `options` name the blocks for the commands."""
    key, attempt = generation.key, generation.attempt
    why = attempt.problem.message if attempt.problem else "no answer was written"
    return UnconfirmedError(
        f"Nobody can know yet whether {key} was paid: {why} (attempt {attempt.number}, claimed "
        f"{attempt.claimed_at:%Y-%m-%d %H:%M:%S} UTC by flow run {attempt.claimed_by.flow_run_id or 'none'}). It is "
        "not sent again by itself. Look for its task in that run's log, in the event sora.generation.submitted, and in "
        f"your APIXO account at that time. Then run `sora resolve {key} --task-id TASK_ID{options}` if there is one, "
        f"or `sora resolve {key} --resubmit{options}` if there is none. In the Prefect UI the deployment resolve-video "
        "does both.",
        key=key,
    )


def conflict_error(generation: Generation) -> KeyConflictError:
    """Which request the key belongs to."""
    return KeyConflictError(
        f"The key {generation.key} belongs to another request (claimed {generation.created_at:%Y-%m-%d %H:%M} UTC: "
        f"{generation.request.prompt[:80]!r}). One key is one video: use a new key for a new request.",
        key=generation.key,
    )


def failed_error(generation: Generation, options: str) -> VideoFailedError:
    """What the provider said, and whether trying again makes sense. `options` name the blocks for the command."""
    failure = generation.failure()
    go_on, pay_again = (command.format(key=generation.key, options=options) for command in (GO_ON, PAY_AGAIN))
    again = f"run {pay_again}, or rerun its deployment's run in the Prefect UI"
    advice = "" if failure.permanent else f" To pay for another try, {again}."
    if generation.given_up:
        advice = f" Run {go_on.replace('TASK_ID', str(generation.task_id))}, which pays nothing.{advice}"
    return VideoFailedError(
        f"{generation.key}: {failure}{advice}",
        key=generation.key,
        task_id=generation.task_id,
        fail_code=failure.fail_code,
        permanent=failure.permanent,
    )


def task_of_another_key(task_id: str, key: str) -> Problem:
    """The provider answered with a task that the ledger has as another generation's: a person named it there."""
    return Problem(
        kind="TaskOfAnotherKey",
        message=(
            f"APIXO answered with task {task_id}, which the ledger has as a task of {key}. If it was named there by "
            f"mistake, name the right one with `sora resolve {key} --task-id …` first"
        ),
    )


def unknown_model(request: VideoRequest) -> str | None:
    """That nothing is known of a model, so that its request is sent unchecked; None: the catalog has all of them."""
    unknown = ", ".join(model for model in request.models if find(model) is None)
    return f"the catalog does not have {unknown}: the request is sent as it is, unchecked" if unknown else None


def duplicate_sentence(key: str, first_key: str) -> str:
    """That the same request was generated before, for the log and for a dry run."""
    return f"{key} asks for the same video as {first_key}, which was submitted before: it would be paid for again"


def duplicate_error(key: str, first_key: str) -> DuplicateRequestError:
    """A duplicate, where duplicates are refused."""
    return DuplicateRequestError(
        f"{duplicate_sentence(key, first_key)}. Duplicates are refused, so nothing was sent. `sora show {first_key}` "
        "shows that video; allow duplicates to have another one.",
        key=key,
    )
