"""One play: actors on a stage before a real bucket, and what is checked of it after every step."""

import asyncio
import functools
import hashlib
import io
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
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
from tests.attack.model import promises
from tests.attack.model.cast import EXPECTED, Cast, video_of_task
from tests.attack.model.provider import Provider, StagedPayments
from tests.attack.model.stage import Actor, Fate, Stage, StagedStore, close
from tests.support import unique

MACHINES: Final = 4
LONGEST_RUN: Final = 80
"""Steps after which an actor that is to run to its end is left where it is."""

LONGEST_LIFE: Final = 20
"""So many such runs are enough for whatever an actor has to wait for."""

Script = Callable[[PayingResources], Coroutine[Any, Any, None]]

Furnish = Callable[[Minio, str], None]
"""Makes a bucket, with settings of its own."""


def plainly(client: Minio, bucket: str) -> None:
    """Makes a bucket without any."""
    client.make_bucket(bucket)


@dataclass
class House:
    """What is expensive to make and serves all plays: the event loop and the stores of the machines."""

    archive: VideoArchive
    spool: Path
    runner: asyncio.Runner
    furnish: Furnish = plainly
    stores: list[StagedStore] = field(default_factory=list)
    tally: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.stores = [StagedStore(self.archive) for _ in range(MACHINES)]

    def move_to(self, bucket: str) -> None:
        """The next play has a bucket of its own."""
        for store in self.stores:
            store.move_to(bucket)
        self.eye: ObjectStore = self.archive.model_copy(update={"bucket": bucket}).store()
        """Looks at the bucket past all actors."""

    def close(self) -> None:
        """Closes all connections."""

        async def closing() -> None:
            for store in (*self.stores, self.eye):
                await store.aclose()

        self.runner.run(closing())


class BrokenPromiseError(AssertionError):
    """A promise was broken."""


class Play:
    """One bucket, one provider, and who acts before them."""

    def __init__(self, house: House) -> None:
        self.house = house
        archive = house.archive.model_copy(update={"bucket": unique("play")})
        house.furnish(archive.client(), archive.bucket)
        archive.client().put_object(archive.bucket, RACED, io.BytesIO(b"-"), 1)
        house.move_to(archive.bucket)
        self.stage = Stage(written=self._written)
        self.provider = Provider(self._sending)
        self.cast = Cast(archive, self.provider, house.spool)
        self.actors: list[Actor] = []
        self.keys_of: dict[Actor, str] = {}
        self.payments: dict[Actor, StagedPayments] = {}
        self.machines: list[Actor | None] = [None] * MACHINES
        self.ahead = [0.0] * MACHINES
        self.records: dict[str, Generation] = {}
        self.owners: dict[str, TaskOwner] = {}
        self.folders: dict[str, tuple[str, str]] = {}
        self.paid_for: dict[str, set[str]] = {}
        self.refuse_duplicates = False
        self.claimed: dict[tuple[str, int], float] = {}
        self.wrong: list[str] = []
        self._seen = (0, 0, 0)

    def run(self, work: Coroutine[Any, Any, Any]) -> None:
        """Takes one step of the play."""
        self.house.runner.run(work)

    def free(self) -> int | None:
        """A machine on which nothing runs."""
        return next((n for n, actor in enumerate(self.machines) if actor is None or not actor.acting), None)

    def acting(self, key: str | None = None) -> list[Actor]:
        """Who lives and has something left to do, with this key or any."""
        return [a for a in self.actors if a.acting and key in (None, self.keys_of[a])]

    async def begin(self, name: str, key: str, script: Script) -> Actor:
        """A new process on a free machine."""
        number = self.free()
        assert number is not None
        actor = Actor(
            f"{len(self.actors)}-{name}", self.stage, ahead_seconds=self.ahead[number], uptime_seconds=1000.0 * number
        )
        self.machines[number] = actor
        self.actors.append(actor)
        self.keys_of[actor] = key
        resources = self.cast.resources(actor, self.house.stores[number])
        assert isinstance(resources.payments, StagedPayments)
        self.payments[actor] = resources.payments
        self.house.tally[f"begun: {name}"] += 1
        await actor.begin(script(resources))
        return actor

    async def advance(self, actor: Actor, *, until: str, fate: Fate = Fate.GOES_WELL) -> None:
        """Lets an actor go on: once, up to what begins with `until`, or with `""` to its end.

        The fate is that of its first request.
        """
        for step in range(LONGEST_RUN):
            if actor.done or (step and until and (until == "step" or actor.next.startswith(until))):
                return
            if actor.next in ("sleep", "turn", "connect", "post", "reply", "status"):
                await actor.go_on()
                continue
            self.house.tally[f"request: {fate}"] += 1
            await actor.go_on(fate)
            fate = Fate.GOES_WELL

    async def end(self, actor: Actor) -> None:
        """Its run is being ended by Prefect. The paid call does not feel that."""
        actor.ended = True
        await actor.stop()

    async def lose_the_payment_thread(self, actor: Actor) -> None:
        """Its paid call, if one is under way, goes on no more. The run learns that, and lives."""
        if self.payments[actor].busy:
            await self.payments[actor].die()

    async def check(self) -> None:
        """Reads everything back and raises where a promise is broken."""
        self.wrong += [f"{key} was claimed {n} times in attempt {number}" for (key, number), n in self._claims()]
        for actor in self.actors:
            if actor.done and actor.task is not None and not actor.task.cancelled():
                error = actor.task.exception()
                if error is not None and not isinstance(error, EXPECTED):
                    raise BrokenPromiseError(f"{actor.name} failed with {error!r}") from error
        if self._seen != (self.stage.steps, len(self.actors), len(self.acting())):
            self._seen = (self.stage.steps, len(self.actors), len(self.acting()))
            for key in sorted(set(self.keys_of.values())):
                await self._check_key(key)
            self.wrong += promises.broken_by_sharing(self.records)
            if self.refuse_duplicates:
                self.wrong += promises.broken_by_duplicates(self.records, self.provider, self.cast.permissions)
        if self.wrong:
            raise BrokenPromiseError("; ".join(dict.fromkeys(self.wrong)))

    async def record(self, key: str) -> Generation | None:
        """The record as MinIO has it."""
        found = await self.house.eye.get(record_name(key))
        return Generation.model_validate_json(found.data) if found else None

    async def _check_key(self, key: str) -> None:
        record = await self.record(key)
        if record != self.records.get(key):
            self.wrong.append(f"{key} is not what was last written")
        self.wrong += promises.broken_by_charges(record, key, self.provider, self.cast.permissions)
        if record is None:
            return
        known = {task_id for a, made in self.payments.items() if self.keys_of[a] == key for task_id in made.known}
        self.wrong += promises.broken_by_loss(record, known)
        self.wrong += promises.broken_by_owners(record, self.owners)
        self.wrong += promises.broken_by_neglect(record)
        if (
            not self.acting(key)
            and await self.house.eye.get(marker_name(key)) is None
            and not self._died_between_marker_and_record(key)
        ):
            if promises.may_come_home(record):
                self.wrong.append(f"{key} is {record.state} and not marked as open")
            self.wrong += promises.broken_by_silence(record, self.cast.reported)
        if not self.acting(key):
            for task_id, video in promises.videos(record):
                await self._check_video(key, task_id, video)

    async def _check_video(self, key: str, task_id: str, video: ArchivedObject) -> None:
        found = await self.house.eye.get(video.name)
        if found is None or hashlib.sha256(found.data).hexdigest() != video.sha256:
            self.wrong.append(f"the archived video of {key} is not the one in its record")
        if found is None or found.data != video_of_task(task_id):
            self.wrong.append(f"{key} is archived as task {task_id}, with {found and found.data!r}")

    def _died_between_marker_and_record(self, key: str) -> bool:
        """Somebody removed the marker, and a death kept it from being put back. `docs/reliability.md` names both ways.

        One died before it looked again after removing it, and another one of the same key too. Or one died after it had
        taken a closed record up again, and before it put back the marker that another one had removed meanwhile.
        """
        died = [actor for actor in self.actors if self.keys_of[actor] == key and actor.died]
        closing = len(died) > 1 and any(actor.closing for actor in died)
        marks, writes = f"PUT {marker_name(key)}", f"PUT {record_name(key)}"
        marking = any(actor.next == marks and actor.last == writes for actor in died)
        if closing or marking:
            self.house.tally["died between marker and record"] += 1
        return closing or marking

    def _claims(self) -> list[tuple[tuple[str, int], int]]:
        return [(claim, times) for claim, times in Counter(self.cast.claims).items() if times > 1]

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
                self.wrong += [f"{actor.name}: {what}" for what in self._object_written(name, data)]

    def _record_written(self, new: Generation, actor: Actor) -> None:
        old = self.records.get(new.key)
        paid_for = self.paid_for.setdefault(new.key, set())
        found = list(promises.broken_by_change(old, new, paid_for))
        paid_for |= promises.named_by_the_provider(new)
        if new.state is State.CLAIMED:
            self.claimed.setdefault((new.key, new.attempt.number), self.stage.seconds)
        found += promises.broken_by_haste(old, new, claimed=self.claimed, now=self.stage.seconds)
        found += promises.broken_by_owners(new, self.owners)
        for task_id, folder in promises.folders(new):
            if self.folders.setdefault(folder, (new.key, task_id)) != (new.key, task_id):
                found.append(f"{folder} is that of {self.folders[folder]} and of {task_id}")
        self.wrong += [f"{actor.name}: {what} ({old and old.state} → {new.state})" for what in found]
        self.records[new.key] = new
        self.house.tally[f"state: {new.state}"] += 1
        self.house.tally["superseded"] += len(new.attempt.superseded) > (len(old.attempt.superseded) if old else 0)

    def _object_written(self, name: str, data: bytes | None) -> Iterator[str]:
        folder, _, last = name.rpartition("/")
        key, task_id = self.folders.get(f"{folder}/", ("", ""))
        if data is None or not key:
            yield f"{name} was {'removed' if data is None else 'written without a record'}"
        elif last == "video.mp4" and data != video_of_task(task_id):
            yield f"{name} is for {task_id} and holds {data!r}"
        elif any(item.name == name for item in promises.objects(self.records[key])):
            yield f"{name} is archived and was written again"

    def _sending(self, key: str, number: int) -> None:
        """No request is sent for a claim that does not stand any more."""
        record = self.records[key]
        if number != record.attempt.number or record.state is not State.CLAIMED:
            self.wrong.append(f"attempt {number} of {key} is sent, and the record is {record.state}")

    async def bring_all_home(self) -> None:
        """Everybody dies, all tasks end well, and then only the collector works, and a person where one has to.

        Whatever was paid and is known has to end in the archive.
        """
        self.stage.away_until_seconds = 0.0
        for actor in self.actors:
            actor.dead = True
        for task in self.provider.tasks.values():
            task.state = "success" if task.state == "processing" else task.state
        for _ in range(3):
            for name in await self.house.eye.names("open/"):
                key = name.removeprefix("open/")
                await self._alone("collector", key, functools.partial(self.cast.collect, key))
                record = await self.record(key)
                if record is not None and record.state is State.UNCONFIRMED:
                    await self._resolve(record)
        for key, record in self.records.items():
            unfinished = record.state in (State.CLAIMED, State.SUBMITTED, State.SUCCEEDED)
            if unfinished and not self._died_between_marker_and_record(key):
                self.wrong.append(f"{key} stays {record.state} for ever")
            if record.state is not State.UNCONFIRMED:
                self.wrong += [f"{task.task_id} of {key} is paid, and its video stays away" for task in record.beside]
            self.house.tally[f"end: {record.state}"] += 1
            if not promises.may_come_home(record) and await self.house.eye.get(marker_name(key)) is not None:
                self.wrong.append(f"{key} is {record.state}, and marked as open for ever")
        await self.check()

    async def _resolve(self, record: Generation) -> None:
        paid = [task for task in self.provider.charged(record.key) if task.attempt == record.attempt.number]
        if not paid:
            await self._alone("allow", record.key, lambda r: self.cast.allow(record.key, r))
            return
        task_id = paid[0].task_id
        await self._alone("resolve", record.key, lambda r: self.cast.resolve(record.key, r, task_id=task_id))

    async def _alone(self, name: str, key: str, script: Script) -> None:
        actor = await self.begin(name, key, script)
        for _ in range(LONGEST_LIFE):
            await self.advance(actor, until="")
        if actor.acting:
            self.wrong.append(f"{actor.name} never comes to an end; it goes on with {actor.next}")
            actor.dead = True

    async def close(self) -> None:
        """Ends the play."""
        await close(self.stage, self.actors)
        for name, times in self.provider.answers.items():
            self.house.tally[f"answer: {name}"] += times
        self.house.tally["charged"] += sum(1 for task in self.provider.tasks.values() if task.attempt)
        self.house.tally["plays"] += 1
