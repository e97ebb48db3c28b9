"""What is killed: each command that has effects on the world outside, with what happened before it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from deployments.sandbox import Fault
from flows.record.generation import State
from tests.attack.jobs import Kind
from tests.attack.points import Point
from tests.attack.stage import FILM_SECONDS, Calls, Ran, Stage


async def nothing(_: Stage) -> None:
    """The world is empty."""


async def submitted(stage: Stage) -> None:
    """The provider has finished a video that nobody waits for."""
    ran = await stage.run("generate", wait=False)
    assert ran.code == 0, ran.reported
    await stage.video_is_done()


async def submitted_and_one_outside(stage: Stage) -> None:
    """The provider has finished a video that nobody waits for, and one that the ledger does not know."""
    await submitted(stage)
    await stage.make_outside()
    await stage.video_is_done()


async def in_a_parent(stage: Stage) -> None:
    """A flow run that has not begun."""
    await stage.create_parent()


async def unconfirmed_and_paid(stage: Stage) -> None:
    """The provider took the paid call, and its reply was lost."""
    await _unconfirmed(stage, "reset_after")
    await stage.video_is_done()


async def unconfirmed_and_unpaid(stage: Stage) -> None:
    """The paid call was lost, and nobody knows."""
    await _unconfirmed(stage, "reset_before")


async def _unconfirmed(stage: Stage, fault: str) -> None:
    stage.sandbox.faults.add(Fault.model_validate({"call": "submit", "kind": fault}))
    ran = await stage.run("generate")
    assert ran.code == 1, ran.reported
    found = await stage.recorded()
    assert found is not None
    assert found.state is State.UNCONFIRMED


@dataclass(frozen=True)
class Scenario:
    """One command that dies.

    Attributes:
        name: for a person.
        kind: the command.
        least_effects: how many effects it had when this was written. Fewer means that some are no longer seen.
        calls: whether somebody calls back.
        before: what happened before it.
        initial_wait_seconds: how long a run waits before it asks. At 0 it asks too early, and again.
        image: whether the video starts from an image.
        names_task: for `resolve`: whether the person names a task: that from outside, else that which was charged.
    """

    name: str
    kind: Kind
    least_effects: int
    calls: Calls = "none"
    before: Callable[[Stage], Awaitable[None]] = field(default=nothing)
    initial_wait_seconds: float = FILM_SECONDS
    image: bool = False
    names_task: bool = False

    def __str__(self) -> str:
        return self.name

    async def prepare(self, stage: Stage) -> None:
        """Sets the stage."""
        await stage.reset(image=self.image)
        await self.before(stage)

    async def run(self, stage: Stage, *, die_at: Point | None = None) -> Ran:
        """Gives the command."""
        known = (stage.outside, *stage.charged()) if self.names_task else ()
        return await stage.run(self.kind, die_at=die_at, task_id=next(filter(None, known), ""))

    async def rerun(self, stage: Stage) -> None:
        """Gives the command again, as its user would. What it leaves open the collector brings home, as every day."""
        ran = await self.run(stage)
        found = await stage.recorded()
        if self.kind in ("collect", "receive") or (ran.code and found and found.state is not State.UNCONFIRMED):
            await stage.collect()


SCENARIOS = (
    Scenario("generate-video, polling", "generate", 54, initial_wait_seconds=0, image=True),
    Scenario("generate-video, called back", "generate", 52, calls="live"),
    Scenario("generate-batch", "batch", 53),
    Scenario("collect-videos", "collect", 37, before=submitted),
    Scenario("receiver, a task ended", "receive", 11, calls="dropped", before=submitted),
    Scenario("receiver, a lost reply", "receive", 17, calls="dropped", before=unconfirmed_and_paid),
    Scenario("sora resolve --task-id", "resolve", 51, before=unconfirmed_and_paid, names_task=True),
    Scenario("sora resolve --resubmit", "resolve", 56, before=unconfirmed_and_unpaid),
    Scenario("sora resolve --task-id, another one", "resolve", 51, before=submitted_and_one_outside, names_task=True),
    Scenario("a parent that is retried", "parent", 93, before=in_a_parent),
)
