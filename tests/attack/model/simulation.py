"""One simulation: actors that work on a real bucket, and the checks that run after each of its steps."""

import asyncio
import functools
import hashlib
import io
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from minio import Minio

from blocks import VideoArchive
from blocks.object_store import ObjectStore
from blocks.probe import RACED
from flows.record.generation import ArchivedObject, Generation, State
from flows.record.indexes import TaskOwner
from flows.record.ledger import marker_name, record_name
from flows.resources import PayingResources
from tests.attack.model import invariants
from tests.attack.model.actors import EXPECTED, Pipeline, video_of_task
from tests.attack.model.provider import Provider, SimulatedPayments
from tests.attack.model.scheduler import Actor, Delivery, Scheduler, SimulatedStore, close
from tests.support import minio_client, unique

MACHINES: Final = 4
MAX_STEPS: Final = 80
"""After this many steps at a time, an actor that is to run to its end is left where it is."""

MAX_ADVANCES: Final = 20
"""This many times `MAX_STEPS` is enough for anything that an actor may have to wait for."""

Program = Callable[[PayingResources], Coroutine[Any, Any, None]]
"""What an actor runs."""

MakeBucket = Callable[[Minio, str], None]
"""Makes a bucket and configures it."""


def plain_bucket(client: Minio, bucket: str) -> None:
    """Makes a bucket with default settings."""
    client.make_bucket(bucket)


class Fault(StrEnum):
    """What may happen to an actor between two steps."""

    KILLED = "killed"
    CANCELED = "canceled"
    PAYMENT_THREAD_DIED = "payment thread died"


@dataclass
class Harness:
    """What is expensive to create and is shared by all examples: the event loop, and the stores of the machines."""

    archive: VideoArchive
    work_root: Path
    runner: asyncio.Runner
    make_bucket: MakeBucket = plain_bucket
    stores: list[SimulatedStore] = field(default_factory=list)
    tally: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.stores = [SimulatedStore(self.archive) for _ in range(MACHINES)]

    def move_to(self, bucket: str) -> None:
        """Makes the next simulation use its own bucket."""
        for store in self.stores:
            store.move_to(bucket)
        self.direct_store: ObjectStore = self.archive.model_copy(update={"bucket": bucket}).store()
        """Reads the bucket directly, without any actor."""

    def close(self) -> None:
        """Closes all connections."""

        async def closing() -> None:
            for store in (*self.stores, self.direct_store):
                await store.aclose()

        self.runner.run(closing())


class InvariantViolatedError(AssertionError):
    """An invariant does not hold."""


class Simulation:
    """One bucket, one provider, and the actors that use them."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        archive = harness.archive.model_copy(update={"bucket": unique("simulation")})
        harness.make_bucket(minio_client(archive), archive.bucket)
        minio_client(archive).put_object(archive.bucket, RACED, io.BytesIO(b"-"), 1)
        harness.move_to(archive.bucket)
        self.scheduler = Scheduler(written=self._written)
        self.provider = Provider(self._sending)
        self.pipeline = Pipeline(archive, self.provider, harness.work_root)
        self.actors: list[Actor] = []
        self.keys_of: dict[Actor, str] = {}
        self.payments: dict[Actor, SimulatedPayments] = {}
        self.machines: list[Actor | None] = [None] * MACHINES
        self.clock_offsets = [0.0] * MACHINES
        self.records: dict[str, Generation] = {}
        self.owners: dict[str, TaskOwner] = {}
        self.folders: dict[str, tuple[str, str]] = {}
        self.paid_for: dict[str, set[str]] = {}
        self.refuse_duplicates = False
        self.claimed: dict[tuple[str, int], float] = {}
        self.violations: list[str] = []
        self._checked = (0, 0, 0)

    def run(self, work: Coroutine[Any, Any, Any]) -> None:
        """Runs a coroutine on the event loop of the simulation."""
        self.harness.runner.run(work)

    def free_machine(self) -> int | None:
        """A machine on which nothing is running."""
        return next((n for n, actor in enumerate(self.machines) if actor is None or not actor.runnable), None)

    def runnable(self, key: str | None = None) -> list[Actor]:
        """The actors that are alive and have something left to do, for this key or for any."""
        return [a for a in self.actors if a.runnable and key in (None, self.keys_of[a])]

    async def start(self, name: str, key: str, program: Program) -> Actor:
        """Starts a process on a free machine."""
        number = self.free_machine()
        assert number is not None
        actor = Actor(
            f"{len(self.actors)}-{name}",
            self.scheduler,
            clock_offset_seconds=self.clock_offsets[number],
            uptime_seconds=1000.0 * number,
        )
        self.machines[number] = actor
        self.actors.append(actor)
        self.keys_of[actor] = key
        resources = self.pipeline.resources(actor, self.harness.stores[number])
        assert isinstance(resources.payments, SimulatedPayments)
        self.payments[actor] = resources.payments
        self.harness.tally[f"started: {name}"] += 1
        await actor.start(program(resources))
        return actor

    async def advance(self, actor: Actor, *, until: str, delivery: Delivery = Delivery.OK) -> None:
        """Lets an actor run until its next step is one that starts with `until`.

        With `"step"`, it takes a single step. With `""`, it runs to its end. `delivery` applies to its first request.
        """
        for count in range(MAX_STEPS):
            if actor.done or (count and until and (until == "step" or actor.next.startswith(until))):
                return
            if actor.next in ("sleep", "turn", "connect", "post", "reply", "status"):
                await actor.step()
                continue
            self.harness.tally[f"request: {delivery}"] += 1
            await actor.step(delivery)
            delivery = Delivery.OK

    async def inject(self, fault: Fault, actor: Actor) -> None:
        """Makes a fault happen to an actor."""
        match fault:
            case Fault.KILLED:
                actor.killed = True
            case Fault.CANCELED:  # Prefect ends the run; its paid call is not affected
                actor.canceled = True
                await actor.cancel()
            case Fault.PAYMENT_THREAD_DIED:  # a paid call in progress stops; the run gets an error and continues
                if self.payments[actor].busy:
                    await self.payments[actor].die()

    async def check(self) -> None:
        """Reads everything back, and raises if an invariant is violated."""
        self.violations += [f"{key} was claimed {n} times in attempt {number}" for (key, number), n in self._claims()]
        for actor in self.actors:
            if actor.done and actor.task is not None and not actor.task.cancelled():
                error = actor.task.exception()
                if error is not None and not isinstance(error, EXPECTED):
                    raise InvariantViolatedError(f"{actor.name} failed with {error!r}") from error
        progress = (self.scheduler.steps, len(self.actors), len(self.runnable()))
        if self._checked != progress:
            self._checked = progress
            for key in sorted(set(self.keys_of.values())):
                await self._check_key(key)
            self.violations += invariants.shared_tasks(self.records)
            if self.refuse_duplicates:
                self.violations += invariants.duplicate_payments(self.records, self.provider, self.pipeline.permissions)
        if self.violations:
            raise InvariantViolatedError("; ".join(dict.fromkeys(self.violations)))

    async def record(self, key: str) -> Generation | None:
        """The record as it is in MinIO."""
        found = await self.harness.direct_store.get(record_name(key))
        return Generation.model_validate_json(found.data) if found else None

    async def _check_key(self, key: str) -> None:
        record = await self.record(key)
        if record != self.records.get(key):
            self.violations.append(f"{key} is not what was last written")
        self.violations += invariants.wrong_charges(record, key, self.provider, self.pipeline.permissions)
        if record is None:
            return
        payments = [item for actor, item in self.payments.items() if self.keys_of[actor] == key]
        known = {task_id for item in payments for task_id in item.known}
        self.violations += invariants.lost_tasks(record, known)
        self.violations += invariants.wrong_owners(record, self.owners)
        self.violations += invariants.abandoned_tasks(record)
        if (
            not self.runnable(key)
            and await self.harness.direct_store.get(marker_name(key)) is None
            and not self._died_between_marker_and_record(key)
        ):
            if invariants.is_open(record):
                self.violations.append(f"{key} is {record.state} and not marked as open")
            self.violations += invariants.unpublished_ends(record, self.pipeline.published)
        if not self.runnable(key):
            for task_id, video in invariants.videos(record):
                await self._check_video(key, task_id, video)

    async def _check_video(self, key: str, task_id: str, video: ArchivedObject) -> None:
        found = await self.harness.direct_store.get(video.name)
        if found is None or hashlib.sha256(found.data).hexdigest() != video.sha256:
            self.violations.append(f"the archived video of {key} is not the one in its record")
        if found is None or found.data != video_of_task(task_id):
            self.violations.append(f"{key} is archived as task {task_id}, with {found and found.data!r}")

    def _died_between_marker_and_record(self, key: str) -> bool:
        """Whether a missing marker is due to one of the two known windows that `docs/reliability.md` describes.

        Either an actor removed the marker and died before it checked again, and another actor with the same key died
        too. Or an actor, or its payment thread, reopened a closed record and died before it put back the marker, which
        another actor had removed in the meantime.
        """
        actors = [actor for actor in self.actors if self.keys_of[actor] == key]
        died = [actor for actor in actors if actor.died]
        closing = len(died) > 1 and any(actor.closing for actor in died)
        marking = any(actor.unmarked for actor in died) or any(actor.dropped_unmarked for actor in actors)
        if closing or marking:
            self.harness.tally["died between marker and record"] += 1
        return closing or marking

    def _claims(self) -> list[tuple[tuple[str, int], int]]:
        return [(claim, times) for claim, times in Counter(self.pipeline.claims).items() if times > 1]

    def _written(self, name: str, data: bytes | None, actor: Actor) -> None:
        kind, _, rest = name.partition("/")
        match kind:
            case "ledger":
                assert data is not None
                self._record_written(Generation.model_validate_json(data), actor)
            case "tasks" if data is None:
                self.owners.pop(rest, None)
            case "tasks":
                self.owners[rest] = TaskOwner.model_validate_json(data or b"")
            case "videos":
                self.violations += [f"{actor.name}: {what}" for what in self._object_written(name, data)]

    def _record_written(self, new: Generation, actor: Actor) -> None:
        old = self.records.get(new.key)
        paid_for = self.paid_for.setdefault(new.key, set())
        found = list(invariants.wrong_changes(old, new, paid_for))
        paid_for |= invariants.named_by_the_provider(new)
        if new.state is State.CLAIMED:
            self.claimed.setdefault((new.key, new.attempt.number), self.scheduler.seconds)
        found += invariants.unpolled_failures(old, new, actor.polled)
        found += invariants.early_expirations(old, new, claimed=self.claimed, now=self.scheduler.seconds)
        found += invariants.wrong_owners(new, self.owners)
        for task_id, folder in invariants.folders(new):
            if self.folders.setdefault(folder, (new.key, task_id)) != (new.key, task_id):
                found.append(f"{folder} belongs to both {self.folders[folder]} and {task_id}")
        self.violations += [f"{actor.name}: {what} ({old and old.state} → {new.state})" for what in found]
        self.records[new.key] = new
        tally = self.harness.tally
        tally[f"state: {new.state}"] += 1
        tally["superseded"] += len(new.attempt.superseded) > (len(old.attempt.superseded) if old else 0)

    def _object_written(self, name: str, data: bytes | None) -> Iterator[str]:
        folder, _, last = name.rpartition("/")
        key, task_id = self.folders.get(f"{folder}/", ("", ""))
        if data is None or not key:
            yield f"{name} was {'removed' if data is None else 'written without a record'}"
        elif last == "video.mp4" and data != video_of_task(task_id):
            yield f"{name} is for {task_id} and contains {data!r}"
        elif any(item.name == name for item in invariants.objects(self.records[key])):
            yield f"{name} is archived and was written again"

    def _sending(self, key: str, number: int) -> None:
        """No request is sent for a claim that no longer stands."""
        record = self.records[key]
        if number != record.attempt.number or record.state is not State.CLAIMED:
            self.violations.append(f"attempt {number} of {key} is sent, and the record is {record.state}")

    async def recover(self) -> None:
        """Kills all actors and lets all tasks succeed. Then only the collector works, and a user where one is needed.

        Every task that was paid for and is known must end up in the archive.
        """
        self.scheduler.outage_until_seconds = 0.0
        for actor in self.actors:
            actor.killed = True
        for task in self.provider.tasks.values():
            task.state = "success" if task.state == "processing" else task.state
        for _ in range(3):
            for name in await self.harness.direct_store.names("open/"):
                key = name.removeprefix("open/")
                await self._run_alone("collector", key, functools.partial(self.pipeline.collect, key))
                record = await self.record(key)
                if record is not None and record.state is State.UNCONFIRMED:
                    await self._resolve(record)
        for key, record in self.records.items():
            unfinished = record.state in (State.CLAIMED, State.SUBMITTED, State.SUCCEEDED)
            if unfinished and not self._died_between_marker_and_record(key):
                self.violations.append(f"{key} stays {record.state} forever")
            if record.state is not State.UNCONFIRMED:
                self.violations += [
                    f"{task.task_id} of {key} is paid and never archived" for task in record.unarchived_superseded
                ]
            self.harness.tally[f"end: {record.state}"] += 1
            if not invariants.is_open(record) and await self.harness.direct_store.get(marker_name(key)) is not None:
                self.violations.append(f"{key} is {record.state}, and marked as open forever")
        await self.check()

    async def _resolve(self, record: Generation) -> None:
        paid = [task for task in self.provider.charged(record.key) if task.attempt == record.attempt.number]
        if not paid:
            await self._run_alone("allow", record.key, lambda r: self.pipeline.allow(record.key, r))
            return
        task_id = paid[0].task_id
        await self._run_alone("resolve", record.key, lambda r: self.pipeline.resolve(record.key, r, task_id=task_id))

    async def _run_alone(self, name: str, key: str, program: Program) -> None:
        actor = await self.start(name, key, program)
        for _ in range(MAX_ADVANCES):
            await self.advance(actor, until="")
        if actor.runnable:
            self.violations.append(f"{actor.name} does not finish; its next step is {actor.next}")
            actor.killed = True

    async def close(self) -> None:
        """Ends the simulation."""
        await close(self.scheduler, self.actors)
        tally = self.harness.tally
        for name, times in self.provider.answers.items():
            tally[f"answer: {name}"] += times
        tally["charged"] += sum(1 for task in self.provider.tasks.values() if task.attempt)
        tally["examples"] += 1
