"""What is killed: each command that has effects on the outside world, and what happened before it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from deployments.sandbox import Fault
from flows.record.generation import State
from tests.attack.environment import VIDEO_SECONDS, Calls, Environment, Ran
from tests.attack.jobs import Kind
from tests.attack.points import Point


async def nothing(_: Environment) -> None:
    """Nothing has happened."""


async def submitted(environment: Environment) -> None:
    """The provider has finished a video that no run is waiting for."""
    ran = await environment.run("generate", wait=False)
    assert ran.code == 0, ran.reported
    await environment.video_is_done()


async def submitted_and_one_outside(environment: Environment) -> None:
    """As `submitted`, and the provider has also finished a video that the ledger does not know."""
    await submitted(environment)
    await environment.make_outside()
    await environment.video_is_done()


async def in_a_parent(environment: Environment) -> None:
    """A flow run exists that has not started."""
    await environment.create_parent()


async def unconfirmed_and_paid(environment: Environment) -> None:
    """The provider accepted the paid call, and its reply was lost."""
    await _unconfirmed(environment, "reset_after")
    await environment.video_is_done()


async def unconfirmed_and_unpaid(environment: Environment) -> None:
    """The paid call was lost, and it is unclear whether it arrived."""
    await _unconfirmed(environment, "reset_before")


async def _unconfirmed(environment: Environment, fault: str) -> None:
    environment.sandbox.faults.add(Fault.model_validate({"call": "submit", "kind": fault}))
    ran = await environment.run("generate")
    assert ran.code == 1, ran.reported
    found = await environment.recorded()
    assert found is not None
    assert found.state is State.UNCONFIRMED


@dataclass(frozen=True)
class Scenario:
    """One command that dies.

    Attributes:
        name: for messages and test ids.
        kind: the command.
        least_effects: how many effects it had when this was written. Fewer means that some are no longer detected.
        calls: whether callbacks are sent.
        before: what happened before it.
        initial_wait_seconds: how long a run waits before its first poll. With 0, it polls too early, and polls again.
        image: whether the video starts from an image.
        names_task: for `resolve`: whether the user names a task: the one from outside, else the one that was charged.
    """

    name: str
    kind: Kind
    least_effects: int
    calls: Calls = "none"
    before: Callable[[Environment], Awaitable[None]] = field(default=nothing)
    initial_wait_seconds: float = VIDEO_SECONDS
    image: bool = False
    names_task: bool = False

    def __str__(self) -> str:
        return self.name

    async def prepare(self, environment: Environment) -> None:
        """Resets the environment, and does what happened before the command."""
        await environment.reset(image=self.image)
        await self.before(environment)

    async def run(self, environment: Environment, *, die_at: Point | None = None) -> Ran:
        """Runs the command."""
        known = (environment.outside, *environment.charged()) if self.names_task else ()
        return await environment.run(self.kind, die_at=die_at, task_id=next(filter(None, known), ""))

    async def rerun(self, environment: Environment) -> None:
        """Runs the command again, as its user would. What it leaves open, the collector processes."""
        ran = await self.run(environment)
        found = await environment.recorded()
        if self.kind in ("collect", "receive") or (ran.code and found and found.state is not State.UNCONFIRMED):
            await environment.collect()


SCENARIOS = (
    Scenario("generate-video, polling", "generate", 54, initial_wait_seconds=0, image=True),
    Scenario("generate-video, with callbacks", "generate", 52, calls="live"),
    Scenario("generate-batch", "batch", 53),
    Scenario("collect-videos", "collect", 37, before=submitted),
    Scenario("receiver, a task ended", "receive", 11, calls="dropped", before=submitted),
    Scenario("receiver, a lost reply", "receive", 17, calls="dropped", before=unconfirmed_and_paid),
    Scenario("sora resolve --task-id", "resolve", 51, before=unconfirmed_and_paid, names_task=True),
    Scenario("sora resolve --resubmit", "resolve", 56, before=unconfirmed_and_unpaid),
    Scenario("sora resolve --task-id, another one", "resolve", 51, before=submitted_and_one_outside, names_task=True),
    Scenario("a parent that is retried", "parent", 93, before=in_a_parent),
)
