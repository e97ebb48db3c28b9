"""Whether a video whose moderation verdict may be mistaken is resubmitted automatically. All pure.

Verdicts on a finished video, and those of detectors, are sometimes mistaken, and may be different for the next
one. A verdict on the prompt or an image would be the same again. Every further submission is paid, so the API block
sets how many there are.
"""

from typing import Final

from apixo.errors import may_be_mistaken
from flows.record.generation import Generation, State
from flows.record.payments import UNCLEAR

GRANTED_BY: Final = "moderation_retries"
"""The `Attempt.granted_by` of such an attempt: the setting, in place of a person's rerun."""


def may_submit_again(generation: Generation, retries: int) -> bool:
    """Whether the last attempt failed by such a verdict, and further submissions are left.

    Never if any attempt is unanswered: that one may be paid, and its video may come. Nor if a person continued
    with the task, and was told that it pays nothing: whether it is paid for again is then a manual decision.
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
