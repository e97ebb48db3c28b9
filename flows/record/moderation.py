"""Whether a video whose output was judged is submitted once more by itself. All pure.

Judgements on a finished video are sometimes mistaken, and may turn out otherwise for the next one. A judgement on the
prompt or an image would be the same again. Every further submission is paid, so the API block says how many there are.
"""

from typing import Final

from apixo.errors import is_output_verdict
from flows.record.generation import Generation, State
from flows.record.payments import UNCLEAR

GRANTED_BY: Final = "moderation_retries"
"""What `Attempt.granted_by` says of such an attempt: the setting, where else a person's rerun stands."""


def may_submit_again(generation: Generation, retries: int) -> bool:
    """Whether the last attempt failed for its output, and further submissions are left.

    Never where any attempt is without an answer: that one may be paid, and its video may come.
    """
    problem = generation.attempt.problem
    return (
        generation.state is State.FAILED
        and problem is not None
        and is_output_verdict(problem.code)
        and not any(attempt.state in UNCLEAR for attempt in generation.attempts)
        and used(generation) < retries
    )


def used(generation: Generation) -> int:
    """How many attempts were made for such a judgement."""
    return sum(attempt.granted_by == GRANTED_BY for attempt in generation.attempts)


def reason(generation: Generation, retries: int) -> str:
    """Why a new attempt is made, for the record and the log."""
    problem = generation.attempt.problem
    code = problem.code if problem else ""
    return (
        f"APIXO judged the output of attempt {generation.attempt.number} ({code}): moderation retry "
        f"{used(generation) + 1} of {retries}"
    )
