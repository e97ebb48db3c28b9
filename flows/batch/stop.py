"""Stops a batch's submissions: for all rows, or for those whose models APIXO does not offer."""

from collections.abc import KeysView
from typing import Final

from apixo.errors import ACCOUNT_ERRORS
from flows.batch.brake import OutageBrake
from flows.batch.budget import BudgetError
from flows.record.fallback import is_gone
from flows.record.generation import Attempt, Problem, State
from flows.signals.events import emit_blocked
from flows.signals.progress import run_logger

NOT_ARCHIVED_IN_A_ROW: Final = 3
"""After this many finished videos in a row that could not be archived, no further ones are paid for."""


class Stop:
    """Keeps a batch from submitting what would be rejected, get no clear answer, or could not be archived.

    Attributes:
        brake: holds submissions while the provider's answers are unclear.
        blocked: the first reason why rows were not submitted. The run fails with it.
    """

    def __init__(self, batch_key: str, brake: OutageBrake) -> None:
        self.brake = brake
        self.blocked: str | None = None
        self._batch_key = batch_key
        self._reason: str | None = None
        self._gone: dict[str, Problem] = {}
        """The rejection for each model that APIXO does not offer."""
        self._published: set[tuple[str, ...]] = set()
        """Combinations of models for which it was published that APIXO offers none of them."""
        self._not_archived = 0

    @property
    def reason(self) -> str | None:
        """Why nothing more is submitted, whatever the request; None: submissions continue."""
        return self._reason or self.brake.closed

    @property
    def gone(self) -> KeysView[str]:
        """The models that APIXO does not offer. A live view: it may grow."""
        return self._gone.keys()

    def check(self, key: str, models: tuple[str, ...]) -> None:
        """Checks whether a row with these models may be submitted.

        Raises:
            BudgetError: it may not.
        """
        why = self._reason
        if why is None and self._gone.keys() >= set(models):
            why = f"{_gone_sentence(models)} ({self._gone[models[-1]].message})"
        if why is not None:
            raise BudgetError(f"{key} was not submitted: {why}.", key=key)

    def rejected(self, attempt: Attempt, models: tuple[str, ...]) -> None:
        """Records what a rejected attempt of a row with these models means for later rows."""
        refusal = attempt.problem
        if attempt.state is not State.REJECTED or refusal is None:
            return
        if is_gone(refusal):
            self._gone[attempt.model] = refusal
            if self._gone.keys() >= set(models) and models not in self._published:
                self._published.add(models)
                self._block(refusal, f"{_gone_sentence(models)}. {refusal.message}")
        elif refusal.kind in ACCOUNT_ERRORS:
            self.account_rejected(refusal)

    def account_rejected(self, refusal: Problem) -> None:
        """Stops submitting: APIXO rejects the account or the key, whatever the request."""
        if self._reason is None:
            self._reason = f"the rest of the batch would be rejected as well ({refusal.message})"
            self._block(refusal)

    def archived(self) -> None:
        """Records that a video was archived."""
        self._not_archived = 0

    def not_archived(self, problem: str) -> None:
        """Records that a finished video could not be archived, for a reason that does not pass by itself.

        Stops submitting after `NOT_ARCHIVED_IN_A_ROW`. An outage does not count: APIXO keeps results for days, and the
        collector archives them.
        """
        self._not_archived += 1
        if self._not_archived < NOT_ARCHIVED_IN_A_ROW or self.reason is not None:
            return
        why = f"{NOT_ARCHIVED_IN_A_ROW} finished videos in a row could not be archived, so the rest was not submitted"
        self._reason = f"{why} (the reason: {problem})"
        run_logger().error("This run submits no more videos: %s.", self._reason)
        self.blocked = self.blocked or (
            f"{why}. Fix the reason, then run the batch again: nothing is paid twice. The reason: {problem}"
        )

    def follow(self, why: str) -> None:
        """Stops submitting, because another shard has stopped."""
        if self.reason is None:
            run_logger().error("This run submits no more videos, like another shard: %s.", why)
            self._reason = why
            self.blocked = self.blocked or f"{why}."

    async def aclose(self) -> None:
        """Stops the brake's free calls. Called when all rows have ended."""
        await self.brake.aclose()
        if self.brake.closed is not None and self.blocked is None:
            self._block(Problem(kind="ProviderOutage", message=f"{self.brake.closed}."))

    def _block(self, refusal: Problem, sentence: str = "") -> None:
        self.blocked = self.blocked or sentence or refusal.message
        emit_blocked(self._batch_key, refusal)


def _gone_sentence(models: tuple[str, ...]) -> str:
    return f"APIXO does not offer {', '.join(models)}, so its other rows would be rejected as well"
