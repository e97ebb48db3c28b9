"""The invariants that must hold after a crash and its recovery. All pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from flows.record.generation import State

Recovery = Literal["rerun", "collect"]
"""What follows a crash: the user runs the same command again, or does nothing, and only the collector runs."""
RECOVERIES: Final[tuple[Recovery, ...]] = ("rerun", "collect")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the provider, the store and Prefect know about one generation.

    Attributes:
        posts: paid calls that the provider received.
        charged: the tasks that it created for them, which is what it bills.
        state: the state of the record; None: there is no record.
        task_id: the current task in the record; empty: none.
        task_ids: every task that the record names.
        marked: whether the open marker exists.
        videos: names of all archived videos, except those of superseded tasks.
        mismatches: objects that differ from the record or from the provider's video, each with what is wrong.
        published: whether the event `archived` reached Prefect.
        failed: whether the last command failed.
        reported: what the last command printed or raised.
    """

    key: str
    posts: int = 0
    charged: tuple[str, ...] = ()
    state: State | None = None
    task_id: str = ""
    task_ids: tuple[str, ...] = ()
    marked: bool = False
    videos: tuple[str, ...] = ()
    mismatches: tuple[str, ...] = ()
    published: bool = False
    failed: bool = False
    reported: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """What is allowed.

    Attributes:
        posts, charges: the maximum number of paid calls and of tasks. One each, and more only if a user resubmitted.
        reconciles: whether a callback arrives, or the store has the owner of the task, so that a lost reply must not
            require a manual action.
        task_id: the task that a user named and that must be the archived one; empty: any that was charged.
    """

    posts: int = 1
    charges: int = 1
    reconciles: bool = False
    task_id: str = ""


def violations(facts: Facts, *, crashed_as: State | None, recovery: Recovery, limits: Limits) -> tuple[str, ...]:
    """A message for each invariant that does not hold. Empty: all hold.

    Args:
        facts: what is known after the recovery.
        crashed_as: the state of the record right after the crash; None: there was no record.
        recovery: what followed the crash.
        limits: what is allowed.
    """
    found = []
    if facts.posts > limits.posts:
        found.append(f"{facts.posts} paid calls were sent, at most {limits.posts} allowed")
    if len(facts.charged) > limits.charges:
        found.append(f"{len(facts.charged)} tasks were charged, at most {limits.charges} allowed")
    allowed = _allowed(crashed_as, recovery, reconciles=limits.reconciles and bool(facts.charged))
    if facts.state not in allowed:
        names = " or ".join(state_name(state) for state in allowed)
        found.append(f"it crashed as {state_name(crashed_as)} and ended as {state_name(facts.state)}; allowed: {names}")
    found += _unfinished(facts)
    match facts.state:
        case State.ARCHIVED:
            found += _archived(facts)
            if limits.task_id and facts.task_id != limits.task_id:
                found.append(f"it is archived as {facts.task_id}, but a user named {limits.task_id}")
        case State.UNCONFIRMED:
            found += _unconfirmed(facts)
        case _ if facts.charged:
            found.append(f"{', '.join(facts.charged)} is paid, but the record is {state_name(facts.state)}")
    return tuple(found)


def state_name(state: State | None) -> str:
    """The name of a state for messages."""
    return state.value if state else "no record"


def _allowed(crashed_as: State | None, recovery: Recovery, *, reconciles: bool) -> tuple[State | None, ...]:
    """The allowed final states. Only a claim without an answer may stay unconfirmed. A known paid task is archived."""
    match crashed_as:
        case None:
            return (State.ARCHIVED,) if recovery == "rerun" else (None,)
        case State.CLAIMED | State.UNCONFIRMED:
            return (State.ARCHIVED,) if reconciles else (State.ARCHIVED, State.UNCONFIRMED)
        case State.REJECTED:
            return (State.ARCHIVED,) if recovery == "rerun" else (State.REJECTED,)
        case State.FAILED:
            return (State.FAILED,)
        case State.SUBMITTED | State.SUCCEEDED | State.ARCHIVED:
            return (State.ARCHIVED,)


def _archived(facts: Facts) -> Sequence[str]:
    found = list(facts.mismatches)
    if len(facts.videos) != 1:
        found.append(f"it is archived with {len(facts.videos)} videos: {', '.join(facts.videos)}")
    if facts.failed:
        found.append(f"it is archived, but the last command failed: {facts.reported}")
    if facts.marked:
        found.append("it is archived but still marked as open")
    if not facts.published:
        found.append("it is archived, but no event was published")
    lost = set(facts.charged) - set(facts.task_ids)
    if lost:
        found.append(f"{', '.join(sorted(lost))} is paid, but the record does not name it")
    if not facts.charged:
        found.append("it is archived, but nothing was charged")
    return found


def _unconfirmed(facts: Facts) -> Sequence[str]:
    found = []
    if not facts.marked:
        found.append("it is unconfirmed but not marked as open, so the collector will never process it")
    advice = (facts.key, f"sora resolve {facts.key} --task-id", f"sora resolve {facts.key} --resubmit")
    found += [f"it is unconfirmed, but its error lacks {part!r}" for part in advice if part not in facts.reported]
    return found


def _unfinished(facts: Facts) -> Sequence[str]:
    if facts.state is not State.ARCHIVED and facts.videos:
        return [f"it is {state_name(facts.state)} but has {', '.join(facts.videos)}"]
    return []
