"""What a person is told about a generation that does not go on by itself, with the exact commands."""

from flows.errors import KeyConflictError, UnconfirmedError, VideoFailedError
from flows.generation import Generation


def unconfirmed_error(generation: Generation, options: str) -> UnconfirmedError:
    """What a person has to know to resolve it. `options` name the blocks for the commands."""
    key, attempt = generation.key, generation.attempt
    why = attempt.problem.message if attempt.problem else "no answer was written"
    return UnconfirmedError(
        f"Nobody can know yet whether {key} was paid: {why} (attempt {attempt.number}, claimed "
        f"{attempt.claimed_at:%Y-%m-%d %H:%M:%S} UTC by flow run {attempt.claimed_by.flow_run_id or 'none'}). It is "
        "not sent again by itself. Look for its task in that run's log, in the event sora.generation.submitted, and in "
        f"your APIXO account at that time. Then run `sora resolve {key} --task-id TASK_ID{options}` if there is one, "
        f"or `sora resolve {key} --resubmit{options}` if there is none.",
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
    command = f"sora resolve {generation.key} --resubmit{options}"
    again = f"run `{command}`, or rerun its deployment's run in the Prefect UI"
    advice = "" if failure.permanent else f" To pay for another try, {again}."
    return VideoFailedError(
        f"{generation.key}: {failure}{advice}",
        key=generation.key,
        task_id=generation.task_id,
        fail_code=failure.fail_code,
        permanent=failure.permanent,
    )
