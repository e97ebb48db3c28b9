"""What may be true after a crash and its recovery. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from flows.record.generation import State

Recovery = Literal["rerun", "collect"]
"""What follows a crash: the user gives the same command again, or nobody comes and only the collector runs."""
RECOVERIES: Final[tuple[Recovery, ...]] = ("rerun", "collect")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the other sides have seen of one generation.

    Attributes:
        posts: paid calls that the provider received.
        charged: the tasks that it made of them, which is what it bills.
        state: the record's; None: there is no record.
        task_id: the task that counts in the record; empty: none.
        task_ids: every task that the record names.
        marked: whether the open marker is there.
        videos: names of all archived videos, without those of superseded tasks, which are archived beside.
        unsound: objects that differ from the record or from the provider's video, each with what is wrong.
        announced: whether the event `archived` reached Prefect.
        failed: whether the last command failed.
        reported: what the last command told its user.
    """

    key: str
    posts: int = 0
    charged: tuple[str, ...] = ()
    state: State | None = None
    task_id: str = ""
    task_ids: tuple[str, ...] = ()
    marked: bool = False
    videos: tuple[str, ...] = ()
    unsound: tuple[str, ...] = ()
    announced: bool = False
    failed: bool = False
    reported: str = ""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is explained.

    Attributes:
        posts, charges: the most paid calls and tasks that may have been. One each, and more only where a person
            resubmitted.
        reconciles: whether somebody calls back, or the store has noted the task, so that a lost reply must not need a
            person.
        task_id: the task that a person named, as which it must end; empty: any that was charged.
    """

    posts: int = 1
    charges: int = 1
    reconciles: bool = False
    task_id: str = ""


def verdict(facts: Facts, *, crashed_as: State | None, recovery: Recovery, bounds: Bounds) -> tuple[str, ...]:
    """Every promise that is broken, as a sentence. Empty: all is well.

    Args:
        facts: as they are after the recovery.
        crashed_as: the record's state right after the crash; None: there was no record.
        recovery: what followed the crash.
        bounds: what is explained.
    """
    broken = []
    if facts.posts > bounds.posts:
        broken.append(f"{facts.posts} paid calls were sent, {bounds.posts} are explained")
    if len(facts.charged) > bounds.charges:
        broken.append(f"{len(facts.charged)} tasks were charged, {bounds.charges} are explained")
    allowed = _allowed(crashed_as, recovery, reconciles=bounds.reconciles and bool(facts.charged))
    if facts.state not in allowed:
        names = " or ".join(name_of(state) for state in allowed)
        broken.append(f"it crashed as {name_of(crashed_as)} and ended as {name_of(facts.state)}; it may end as {names}")
    broken += _unfinished(facts)
    match facts.state:
        case State.ARCHIVED:
            broken += _archived(facts)
            if bounds.task_id and facts.task_id != bounds.task_id:
                broken.append(f"it is archived as {facts.task_id}, and a person named {bounds.task_id}")
        case State.UNCONFIRMED:
            broken += _unconfirmed(facts)
        case _ if facts.charged:
            broken.append(f"{', '.join(facts.charged)} is paid, and the record is {name_of(facts.state)}")
    return tuple(broken)


def name_of(state: State | None) -> str:
    """A state for a person."""
    return state.value if state else "no record"


def _allowed(crashed_as: State | None, recovery: Recovery, *, reconciles: bool) -> tuple[State | None, ...]:
    """How it may end. Only a claim without an answer may need a person; whatever is known to be paid comes home."""
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
    broken = list(facts.unsound)
    if len(facts.videos) != 1:
        broken.append(f"it is archived with {len(facts.videos)} videos: {', '.join(facts.videos)}")
    if facts.failed:
        broken.append(f"it is archived, and the last command failed: {facts.reported}")
    if facts.marked:
        broken.append("it is archived and still marked as open")
    if not facts.announced:
        broken.append("it is archived, and no event said so")
    lost = set(facts.charged) - set(facts.task_ids)
    if lost:
        broken.append(f"{', '.join(sorted(lost))} is paid, and the record does not name it")
    if not facts.charged:
        broken.append("it is archived and nothing was charged")
    return broken


def _unconfirmed(facts: Facts) -> Sequence[str]:
    broken = []
    if not facts.marked:
        broken.append("it is unconfirmed and not marked as open, so nobody will look at it again")
    advice = (facts.key, f"sora resolve {facts.key} --task-id", f"sora resolve {facts.key} --resubmit")
    broken += [f"it is unconfirmed and its user was not told {part!r}" for part in advice if part not in facts.reported]
    return broken


def _unfinished(facts: Facts) -> Sequence[str]:
    if facts.state is not State.ARCHIVED and facts.videos:
        return [f"it is {name_of(facts.state)} and has {', '.join(facts.videos)}"]
    return []
