"""Runs one crash and its recovery, and checks whether anything was paid twice or lost."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Self, TypeVar

from flows.record.generation import State
from tests.attack.crash_invariants import Facts, Limits, Recovery, state_name, violations
from tests.attack.environment import LAST_WRITE_SECONDS, Environment, Servers, open_environment
from tests.attack.points import Point
from tests.attack.scenarios import Scenario

PARALLEL: Final = 3
"""How many crashes run in parallel: waiting for a lease to expire costs no processor time."""
MAX_TRIES: Final = 3
"""How often a crash is tried until it happens: a point that depends on timing may be missed."""

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """One crash.

    Attributes:
        die_at: where the command is killed.
        recovery: what follows.
        again_at: where the recovery is killed as well; None: it is not.
    """

    die_at: Point
    recovery: Recovery
    again_at: Point | None = None


@dataclass(frozen=True)
class Outcome:
    """The outcome of a crash and its recovery.

    Attributes:
        crashed_as: the state of the record right after the (last) crash; None: there was no record.
        ended_as: its state after the recovery, before any manual action.
        manual_action: what a user did then; empty: nothing was necessary.
        posts, charges: paid calls that the provider received, and tasks that it created for them.
        published: whether the event `archived` reached Prefect.
        violations: the invariants that do not hold.
    """

    plan: Plan
    crashed_as: State | None
    ended_as: State | None
    manual_action: str
    posts: int
    charges: int
    published: bool
    violations: tuple[str, ...]

    def row(self) -> str:
        """One row of the printed table."""
        plan = self.plan
        where = f"{plan.die_at}" + (f", then {plan.again_at}" if plan.again_at else "")
        end = state_name(self.ended_as) + (f", {self.manual_action}" if self.manual_action else "")
        end += "" if self.published else ", event lost"
        bad = "".join(f"\n    VIOLATION: {line}" for line in self.violations)
        return (
            f"{where:75} {plan.recovery:8} {state_name(self.crashed_as):12} {end:45} "
            f"{self.posts} sent, {self.charges} paid{bad}"
        )


class MissedError(AssertionError):
    """The process ended without reaching the point where it was to be killed."""


async def crash_and_recover(plan: Plan, scenario: Scenario, environment: Environment) -> Outcome:
    """Runs one crash, its recovery, and the manual action if one is needed.

    Raises:
        MissedError: the process did not reach the point.
    """
    await scenario.prepare(environment)
    max_posts = len(environment.submits()) + (not environment.charged())
    ran = await scenario.run(environment, die_at=plan.die_at)
    if not ran.died_at(plan.die_at):
        raise MissedError(f"{scenario.name} passed {plan.die_at}, code {ran.code}: {ran.reported}")
    if plan.again_at is not None:
        ran = await (
            scenario.run(environment, die_at=plan.again_at)
            if plan.recovery == "rerun"
            else environment.run("collect", die_at=plan.again_at, machine="elsewhere")
        )
        if not ran.died_at(plan.again_at):
            raise MissedError(f"{scenario.name}, killed {plan.die_at}, passed {plan.again_at}: {ran.reported}")
    await asyncio.sleep(LAST_WRITE_SECONDS)
    found = await environment.recorded()
    crashed_as = found.state if found else None
    reconciles = _calls_back(scenario, plan) or (crashed_as is State.CLAIMED and await environment.owner_is_recorded())
    resolved_as = environment.outside if plan.recovery == "rerun" else ""

    await (scenario.rerun(environment) if plan.recovery == "rerun" else environment.collect())
    facts = await environment.facts()
    limits = Limits(posts=max_posts, reconciles=reconciles, task_id=resolved_as)
    found_wrong = list(violations(facts, crashed_as=crashed_as, recovery=plan.recovery, limits=limits))
    ended_as, manual_action = facts.state, ""
    if facts.state is not State.ARCHIVED:
        manual_action, sends = await _act_manually(facts, environment)
        limits = Limits(posts=facts.posts + sends)
        facts = await environment.facts()
        found_wrong += violations(facts, crashed_as=State.SUBMITTED, recovery="rerun", limits=limits)
    elif plan.recovery == "collect":
        await environment.run("generate")  # the user does not know yet that the video was archived
        facts = await environment.facts()
        found_wrong += violations(facts, crashed_as=State.ARCHIVED, recovery="rerun", limits=limits)
    return Outcome(
        plan,
        crashed_as,
        ended_as,
        manual_action,
        posts=facts.posts,
        charges=len(facts.charged),
        published=facts.published,
        violations=tuple(dict.fromkeys(found_wrong)),
    )


def _calls_back(scenario: Scenario, plan: Plan) -> bool:
    """Whether a callback arrives after the crash."""
    return scenario.calls == "live" or (scenario.kind == "receive" and plan.recovery == "rerun")


async def _act_manually(facts: Facts, environment: Environment) -> tuple[str, int]:
    """Does what the error asks for. Returns what that was, and how many paid calls it allows."""
    if facts.state is not State.UNCONFIRMED:
        await environment.run("generate")
        return "run again", 1
    if facts.charged:
        await environment.run("resolve", task_id=facts.charged[0])
        return "task named", 0
    await environment.run("resolve")
    return "resubmitted", 1


class EnvironmentPool:
    """A few environments, each used for one crash at a time."""

    def __init__(self, scenario: Scenario, servers: Servers, *, size: int = PARALLEL) -> None:
        self._scenario, self._servers, self._size = scenario, servers, size
        self._stack = contextlib.AsyncExitStack()
        self._free: asyncio.Queue[Environment] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        wait = self._scenario.initial_wait_seconds
        for _ in range(self._size):
            environment = open_environment(self._servers, self._scenario.calls, initial_wait_seconds=wait)
            self._free.put_nowait(await self._stack.enter_async_context(environment))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def points(self) -> tuple[Point, ...]:
        """Every point that the command passes when nothing goes wrong, in order."""

        async def record(environment: Environment) -> tuple[Point, ...]:
            await self._scenario.prepare(environment)
            ran = await self._scenario.run(environment)
            assert ran.code == 0, ran.reported
            return ran.points

        return await self._in_one(record)

    async def points_after(self, plan: Plan) -> tuple[Point, ...]:
        """Every point that the first process of the recovery passes, in order."""

        async def record(environment: Environment) -> tuple[Point, ...]:
            await crash_and_recover(plan, self._scenario, environment)
            (number,) = [number for number, ran in enumerate(environment.ran) if ran.died_at(plan.die_at)]
            return environment.ran[number + 1].points

        return await self._in_one(record)

    async def run_all(self, plans: Sequence[Plan]) -> list[Outcome]:
        """Runs every crash, as many in parallel as there are environments. Returns the outcomes in the same order.

        A second crash may be left out. If the first one comes just after a write was sent, the write may arrive or not,
        and the recovery may then pass other points than when they were recorded.
        """
        outcomes = await asyncio.gather(*(self._run(plan) for plan in plans))
        return [outcome for outcome in outcomes if outcome is not None]

    async def _run(self, plan: Plan) -> Outcome | None:
        async def several_times(environment: Environment) -> Outcome:
            for _ in range(MAX_TRIES - 1):
                with contextlib.suppress(MissedError):
                    return await crash_and_recover(plan, self._scenario, environment)
            return await crash_and_recover(plan, self._scenario, environment)

        try:
            return await self._in_one(several_times)
        except MissedError:
            if plan.again_at is None or plan.die_at.moment != "sent":
                raise
            return None

    async def _in_one(self, use: Callable[[Environment], Awaitable[T]]) -> T:
        environment = await self._free.get()
        try:
            return await use(environment)
        finally:
            self._free.put_nowait(environment)


def table(title: str, outcomes: Iterable[Outcome]) -> str:
    """All outcomes as text."""
    return "\n".join([f"\n== {title}", *(outcome.row() for outcome in outcomes)])
