"""Plays one crash to its end, and looks whether anything was paid twice or lost."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Self, TypeVar

from flows.record.generation import State
from tests.attack.points import Point
from tests.attack.scenarios import Scenario
from tests.attack.stage import LAST_WRITE_SECONDS, Stage, World, open_stage
from tests.attack.verdict import Bounds, Facts, Recovery, name_of, verdict

STAGES: Final = 3
"""Crashes played at the same time: a lease that is waited out costs no processor."""
TRIES: Final = 3
"""How often a crash is played until it happens: a moment that depends on time may be missed."""

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """One crash.

    Attributes:
        die_at: where the command is killed.
        recovery: what follows.
        again_at: where the recovery is killed in its turn; None: it is not.
    """

    die_at: Point
    recovery: Recovery
    again_at: Point | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of it.

    Attributes:
        crashed_as: the record right after the (last) crash; None: there was none.
        ended_as: the record after the recovery, before a person did anything.
        person: what a person did then; empty: nothing was needed.
        posts, charges: paid calls that the provider received, and tasks that it made of them.
        announced: whether the event `archived` reached Prefect.
        broken: the promises that were not kept.
    """

    plan: Plan
    crashed_as: State | None
    ended_as: State | None
    person: str
    posts: int
    charges: int
    announced: bool
    broken: tuple[str, ...]

    def row(self) -> str:
        """For the table."""
        plan = self.plan
        where = f"{plan.die_at}" + (f", then {plan.again_at}" if plan.again_at else "")
        end = name_of(self.ended_as) + (f", {self.person}" if self.person else "")
        end += "" if self.announced else ", event lost"
        bad = "".join(f"\n    BROKEN: {line}" for line in self.broken)
        return (
            f"{where:75} {plan.recovery:8} {name_of(self.crashed_as):12} {end:45} "
            f"{self.posts} sent, {self.charges} paid{bad}"
        )


class MissedError(AssertionError):
    """The process ended before it came to the point where it was to die."""


async def play(plan: Plan, scenario: Scenario, stage: Stage) -> Outcome:
    """One crash, its recovery, and what a person does where one is needed.

    Raises:
        MissedError: it did not crash there.
    """
    await scenario.prepare(stage)
    explained = len(stage.submits()) + (not stage.charged())
    ran = await scenario.run(stage, die_at=plan.die_at)
    if not ran.died_at(plan.die_at):
        raise MissedError(f"{scenario.name} passed {plan.die_at}, code {ran.code}: {ran.reported}")
    if plan.again_at is not None:
        ran = await (
            scenario.run(stage, die_at=plan.again_at)
            if plan.recovery == "rerun"
            else stage.run("collect", die_at=plan.again_at, machine="elsewhere")
        )
        if not ran.died_at(plan.again_at):
            raise MissedError(f"{scenario.name}, killed {plan.die_at}, passed {plan.again_at}: {ran.reported}")
    await asyncio.sleep(LAST_WRITE_SECONDS)
    found = await stage.recorded()
    crashed_as = found.state if found else None
    reconciles = _calls_back(scenario, plan) or (crashed_as is State.CLAIMED and await stage.is_noted())
    resolved_as = stage.outside if plan.recovery == "rerun" else ""

    await (scenario.rerun(stage) if plan.recovery == "rerun" else stage.collect())
    facts = await stage.facts()
    bounds = Bounds(posts=explained, reconciles=reconciles, task_id=resolved_as)
    broken = list(verdict(facts, crashed_as=crashed_as, recovery=plan.recovery, bounds=bounds))
    ended_as, person = facts.state, ""
    if facts.state is not State.ARCHIVED:
        person, sends = await _send_a_person(facts, stage)
        bounds = Bounds(posts=facts.posts + sends)
        facts = await stage.facts()
        broken += verdict(facts, crashed_as=State.SUBMITTED, recovery="rerun", bounds=bounds)
    elif plan.recovery == "collect":
        await stage.run("generate")  # nobody told its user that the video is there
        facts = await stage.facts()
        broken += verdict(facts, crashed_as=State.ARCHIVED, recovery="rerun", bounds=bounds)
    reported_once = tuple(dict.fromkeys(broken))
    paid = len(facts.charged)
    return Outcome(plan, crashed_as, ended_as, person, facts.posts, paid, facts.announced, reported_once)


def _calls_back(scenario: Scenario, plan: Plan) -> bool:
    """Whether somebody calls back after the crash."""
    return scenario.calls == "live" or (scenario.kind == "receive" and plan.recovery == "rerun")


async def _send_a_person(facts: Facts, stage: Stage) -> tuple[str, int]:
    """Does what the error says. Returns what that was, and how many paid calls it explains."""
    if facts.state is not State.UNCONFIRMED:
        await stage.run("generate")
        return "run again", 1
    if facts.charged:
        await stage.run("resolve", task_id=facts.charged[0])
        return "task named", 0
    await stage.run("resolve")
    return "resubmitted", 1


class Stages:
    """A few stages, each for one play at a time."""

    def __init__(self, scenario: Scenario, world: World, *, number: int = STAGES) -> None:
        self._scenario, self._world, self._number = scenario, world, number
        self._stack = contextlib.AsyncExitStack()
        self._free: asyncio.Queue[Stage] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        wait = self._scenario.initial_wait_seconds
        for _ in range(self._number):
            opened = open_stage(self._world, self._scenario.calls, initial_wait_seconds=wait)
            self._free.put_nowait(await self._stack.enter_async_context(opened))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def points(self) -> tuple[Point, ...]:
        """Every moment that the command passes where nothing goes wrong, in order."""

        async def record(stage: Stage) -> tuple[Point, ...]:
            await self._scenario.prepare(stage)
            ran = await self._scenario.run(stage)
            assert ran.code == 0, ran.reported
            return ran.points

        return await self._on_one(record)

    async def points_after(self, plan: Plan) -> tuple[Point, ...]:
        """Every moment that the first process of the recovery passes, in order."""

        async def record(stage: Stage) -> tuple[Point, ...]:
            await play(plan, self._scenario, stage)
            (number,) = [number for number, ran in enumerate(stage.ran) if ran.died_at(plan.die_at)]
            return stage.ran[number + 1].points

        return await self._on_one(record)

    async def play_all(self, plans: Sequence[Plan]) -> list[Outcome]:
        """Plays every crash, as many at a time as there are stages. In their order.

        A second crash may be left out: where the first comes just after a write was sent, that may arrive or not, and
        what recovers it then passes other points than it did when they were numbered.
        """
        played = await asyncio.gather(*(self._play(plan) for plan in plans))
        return [outcome for outcome in played if outcome is not None]

    async def _play(self, plan: Plan) -> Outcome | None:
        async def several_times(stage: Stage) -> Outcome:
            for _ in range(TRIES - 1):
                with contextlib.suppress(MissedError):
                    return await play(plan, self._scenario, stage)
            return await play(plan, self._scenario, stage)

        try:
            return await self._on_one(several_times)
        except MissedError:
            if plan.again_at is None or plan.die_at.moment != "sent":
                raise
            return None

    async def _on_one(self, use: Callable[[Stage], Awaitable[T]]) -> T:
        stage = await self._free.get()
        try:
            return await use(stage)
        finally:
            self._free.put_nowait(stage)


def table(title: str, outcomes: Iterable[Outcome]) -> str:
    """All outcomes for a person."""
    return "\n".join([f"\n== {title}", *(outcome.row() for outcome in outcomes)])
