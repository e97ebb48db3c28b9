"""Whether a video whose moderation verdict may be mistaken is resubmitted automatically. All pure.

Verdicts on a finished video, and those of detectors, are sometimes mistaken, and may be different for the next
video. A verdict on the prompt or an image would be the same again. Every resubmission is paid, so the API block limits
their number.
"""

from typing import Final

from apixo.errors import may_be_mistaken
from flows.record.generation import Generation, State
from flows.record.payments import UNCLEAR

GRANTED_BY: Final = "moderation_retries"
"""The `Attempt.granted_by` of such an attempt: the name of the setting, instead of a user's rerun."""


def may_submit_again(generation: Generation, retries: int) -> bool:
    """Whether the last attempt failed because of such a verdict, and resubmissions are left.

    Never if any attempt is unanswered: it may be paid, and its video may still come. Never after a user decided to
    continue with the task, because the form said that this pays nothing: paying again is then a manual decision.
    """
    problem = generation.attempt.problem
    return (
        generation.state is State.FAILED
        and problem is not None
        and may_be_mistaken(problem.code)
        and not generation.attempt.taken_by_person
        and not any(attempt.state in UNCLEAR for attempt in generation.attempts)
        and used(generation) < retries
    )


def used(generation: Generation) -> int:
    """How many attempts were made because of such a verdict."""
    return sum(attempt.granted_by == GRANTED_BY for attempt in generation.attempts)


def reason(generation: Generation, retries: int) -> str:
    """Why a new attempt is made, for the record and the log."""
    problem = generation.attempt.problem
    code = problem.code if problem else ""
    return (
        f"APIXO's verdict on attempt {generation.attempt.number} ({code}) may be mistaken: moderation retry "
        f"{used(generation) + 1} of {retries}"
    )
