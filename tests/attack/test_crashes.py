"""Kills each command just before and just after each of its effects, and recovers as a user would.

`make attack` runs every crash, which alone takes most of an hour; `make test` runs a fixed sample. With `-s`, each test
prints its table.
"""

from collections.abc import Sequence
from typing import Final

import pytest

from tests.attack.crash_invariants import RECOVERIES
from tests.attack.crashes import EnvironmentPool, Outcome, Plan, table
from tests.attack.environment import Servers
from tests.attack.points import Point
from tests.attack.scenarios import SCENARIOS, Scenario

EVERY: Final = 43
"""The sample has one crash in this many. Not a multiple of 4, so that it covers both moments and both recoveries."""
SAMPLED: Final = [scenario for scenario in SCENARIOS if scenario.name == "generate-video, polling"]
EVERY_SECOND: Final = 11
"""One second crash in this many is run. There are thousands."""
LEAST_PAIRS: Final = 100
"""There were 117."""
FIRST: Final = (
    "after PUT marker #1",
    "after PUT record #1",
    "sent POST generation #1",
    "after PUT task owner #1",
    "after PUT record #2",
    "after GET result #1",
    "after PUT video.mp4 #1",
    "after PUT record #4",
    "after DELETE marker #1",
)
"""First crashes that each leave a different state behind: from a lone marker to an archived video without an event."""


@pytest.mark.sample
@pytest.mark.parametrize("scenario", SAMPLED, ids=str)
async def test_sampled_crashes_violate_no_invariants(scenario: Scenario, servers: Servers) -> None:
    await attack(scenario, servers, every=EVERY)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
async def test_crash_at_every_point_violates_no_invariants(scenario: Scenario, servers: Servers) -> None:
    await attack(scenario, servers, every=1)


@pytest.mark.timeout(3600)
async def test_two_consecutive_crashes_violate_no_invariants(servers: Servers) -> None:
    await attack_twice(FIRST, servers, every=EVERY_SECOND)


async def attack(scenario: Scenario, servers: Servers, *, every: int) -> None:
    """Runs one crash in `every`, starting in the middle of the first `every`."""
    async with EnvironmentPool(scenario, servers) as environments:
        points = await environments.points()
        effects = {(point.label, point.number) for point in points}
        plans = [Plan(point, recovery) for point in points for recovery in RECOVERIES][every // 2 :: every]
        outcomes = await environments.run_all(plans)
    print(table(f"{scenario}: {len(effects)} effects, {len(points)} moments, {len(plans)} crashes", outcomes))
    assert_no_violations(outcomes)
    assert len(effects) >= scenario.least_effects


async def attack_twice(first: Sequence[str], servers: Servers, *, every: int) -> None:
    """Kills a run at each of these points, and then its recovery at one point in `every`."""
    scenario = SCENARIOS[0]
    async with EnvironmentPool(scenario, servers) as environments:
        once = [Plan(Point.parse(line), recovery) for line in first for recovery in RECOVERIES]
        twice = [
            Plan(plan.die_at, plan.recovery, again_at=point)
            for plan in once
            for point in (await environments.points_after(plan))[every // 2 :: every]
        ]
        outcomes = await environments.run_all(twice)
    print(table(f"{scenario}, twice: {len(outcomes)} of {len(twice)} pairs", outcomes))
    assert_no_violations(outcomes)
    assert len(outcomes) >= LEAST_PAIRS


def assert_no_violations(outcomes: Sequence[Outcome]) -> None:
    found = [outcome.row() for outcome in outcomes if outcome.violations]
    assert not found, "\n" + "\n".join(found)
