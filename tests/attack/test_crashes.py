"""Kills each command just before and just after each effect that it has, and recovers as a user would.

`make attack` plays every crash, which alone takes most of an hour; `make test` plays a fixed sample. With `-s` each
prints its table.
"""

from collections.abc import Sequence
from typing import Final

import pytest

from tests.attack.crashes import Outcome, Plan, Stages, table
from tests.attack.points import Point
from tests.attack.scenarios import SCENARIOS, Scenario
from tests.attack.stage import World
from tests.attack.verdict import RECOVERIES

EVERY: Final = 43
"""The sample holds one crash of so many. No multiple of 4: so it meets both moments and both recoveries."""
SAMPLED: Final = [scenario for scenario in SCENARIOS if scenario.name == "generate-video, polling"]
EVERY_SECOND: Final = 11
"""Of the crashes of a recovery, one of so many is played. There are thousands."""
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
"""First crashes that each leave another world behind: from a marker alone to a video that nobody was told of."""


@pytest.mark.sample
@pytest.mark.parametrize("scenario", SAMPLED, ids=str)
async def test_a_sample_of_crashes(scenario: Scenario, world: World) -> None:
    await attack(scenario, world, every=EVERY)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
async def test_a_crash_at_every_point(scenario: Scenario, world: World) -> None:
    await attack(scenario, world, every=1)


@pytest.mark.timeout(3600)
async def test_two_crashes_in_a_row(world: World) -> None:
    await attack_twice(FIRST, world, every=EVERY_SECOND)


async def attack(scenario: Scenario, world: World, *, every: int) -> None:
    """Plays one crash of so many, from the middle of the first so many on."""
    async with Stages(scenario, world) as stages:
        points = await stages.points()
        effects = {(point.label, point.number) for point in points}
        plans = [Plan(point, recovery) for point in points for recovery in RECOVERIES][every // 2 :: every]
        outcomes = await stages.play_all(plans)
    print(table(f"{scenario}: {len(effects)} effects, {len(points)} moments, {len(plans)} crashes", outcomes))
    assert_nothing_broken(outcomes)
    assert len(effects) >= scenario.least_effects


async def attack_twice(first: Sequence[str], world: World, *, every: int) -> None:
    """Kills a run at each of these points, and one of so many times also what recovers it."""
    scenario = SCENARIOS[0]
    async with Stages(scenario, world) as stages:
        once = [Plan(Point.parse(line), recovery) for line in first for recovery in RECOVERIES]
        twice = [
            Plan(plan.die_at, plan.recovery, again_at=point)
            for plan in once
            for point in (await stages.points_after(plan))[every // 2 :: every]
        ]
        outcomes = await stages.play_all(twice)
    print(table(f"{scenario}, twice: {len(outcomes)} of {len(twice)} pairs", outcomes))
    assert_nothing_broken(outcomes)
    assert len(outcomes) >= LEAST_PAIRS


def assert_nothing_broken(outcomes: Sequence[Outcome]) -> None:
    broken = [outcome.row() for outcome in outcomes if outcome.broken]
    assert not broken, "\n" + "\n".join(broken)
