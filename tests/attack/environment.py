"""The environment of one crash: its own provider, bucket and two blocks, which are reused for the next one."""

import asyncio
import contextlib
import hashlib
import secrets
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from uuid import UUID

import anyio
from minio.deleteobjects import DeleteObject
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.states import AwaitingRetry

from apixo import VideoRequest
from blocks import ApixoApi, VideoArchive
from blocks.probe import RACED
from deployments.local.prefect_server import PrefectServer
from deployments.local.store_server import ObjectStoreServer
from deployments.sandbox import Fault, SandboxServer, SandboxSettings
from deployments.sandbox.record import RecordedRequest
from flows.record.generation import FINISHED, ArchivedObject, Generation, State, SupersededTask
from flows.record.indexes import request_digest
from flows.record.ledger import Ledger
from tests.attack.crash_invariants import Facts
from tests.attack.jobs import BATCH_ROW, Child, Job, Kind, parent
from tests.attack.labels import Places
from tests.attack.points import Point
from tests.attack.zygote import Zygote
from tests.flows.conftest import store_blocks
from tests.support import KITE, made_outside, make_api, make_archive, minio_client, unique
from tests.support.receiver import exchange, named, post, receiving

SUBMIT_TIMEOUT_SECONDS = 1.0
"""A claim without an answer is considered dead after twice as long."""
LAST_WRITE_SECONDS = 0.1
"""What a killed process has sent arrives within this time."""
VIDEO_SECONDS = 0.5
"""At the sandbox's speed, a video of 4 s is done after 0.2 to 0.4 s."""
MAX_COLLECTIONS = 20
"""The maximum number of runs of the collector. One run takes longer than a video."""
CALLBACK_URL = "http://127.0.0.1:9"
"""Nothing listens there."""
OUTSIDE_REQUEST = VideoRequest(prompt="A lighthouse in a storm, from above")
"""The video of a task that is not in the ledger."""


@dataclass(frozen=True)
class Servers:
    """What all environments share."""

    zygote: Zygote
    minio: ObjectStoreServer
    prefect: PrefectServer
    video_folder: Path
    folder: Path


@dataclass(frozen=True)
class Ran:
    """How a child process ended.

    Attributes:
        code: its exit code, or minus the signal that killed it.
        reported: what it printed or raised.
        points: every point that it passed, in order.
    """

    code: int
    reported: str
    points: tuple[Point, ...]

    def died_at(self, point: Point) -> bool:
        """Whether it was killed there."""
        return self.code == -signal.SIGKILL and point in self.points


@dataclass
class Environment:
    """One generation at a time, and what the provider, the store and Prefect know about it.

    Attributes:
        key: the key of the generation.
        image: whether it starts from an image.
        outside: a task that was created outside the pipeline with the same API key; empty: there is none.
        parent: the flow run that the generation is part of; None: there is none.
        ran: every command so far.
    """

    servers: Servers
    sandbox: SandboxServer
    api: ApixoApi
    archive: VideoArchive
    blocks: str
    ledger: Ledger
    key: str = ""
    image: bool = False
    outside: str = ""
    parent: UUID | None = None
    ran: list[Ran] = field(default_factory=list)

    @property
    def request(self) -> VideoRequest:
        images = (f"{self.sandbox.base_url}/samples/kite.jpg",) if self.image else ()
        return VideoRequest(prompt=KITE.prompt, image_urls=images)

    async def reset(self, *, image: bool = False) -> None:
        """Clears everything for the next crash."""
        self.key, self.image = f"{unique('crash')}-{BATCH_ROW}", image  # also the key of the batch's row
        self.outside, self.parent = "", None
        self.ran.clear()
        self.sandbox.record.clear()
        self.sandbox.faults.clear()
        if self.api.callback_url == CALLBACK_URL:
            self.sandbox.faults.add(Fault(call="callback", kind="drop", times=-1))
        await asyncio.to_thread(self._empty_bucket)

    def _empty_bucket(self) -> None:
        client = minio_client(self.archive)
        listed = [item.object_name or "" for item in client.list_objects(self.archive.bucket, recursive=True)]
        names = [name for name in listed if name != RACED]
        errors = client.remove_objects(self.archive.bucket, [DeleteObject(name) for name in names])
        assert list(errors) == []
        client._http.clear()

    async def make_outside(self) -> None:
        """Creates a task outside the pipeline, with the same API key."""
        self.outside = await made_outside(self.api, OUTSIDE_REQUEST)

    async def create_parent(self) -> None:
        """Creates a flow run that will generate the video without giving it a key."""
        async with get_client() as client:
            self.parent = (await client.create_flow_run(parent)).id
        self.key = f"{self.parent}-{request_digest(self.request)[:12]}"

    async def run(
        self, kind: Kind, *, die_at: Point | None = None, wait: bool = True, machine: str = "here", task_id: str = ""
    ) -> Ran:
        """Runs a command in its own process.

        Args:
            kind: which command.
            die_at: where the process is killed.
            wait: whether it waits for the video.
            machine: each machine has its own disk.
            task_id: for `resolve`; empty: allow a resubmission.
        """
        folder = self.servers.folder / self.key / f"{len(self.ran)}"
        folder.mkdir(parents=True)
        job = Job(
            kind=kind, key=self.key, request=self.request, blocks=self.blocks, wait=wait, task_id=task_id or None,
            work_root=folder.parent / machine, port=folder / "port", flow_run_id=self.parent,
        )  # fmt: skip
        if kind == "parent" and self.ran:
            await self._retry_parent()
        child = Child(
            job=job, places=self._places(), die_at=die_at, trace=folder / "trace", reported=folder / "reported"
        )
        running = asyncio.create_task(self.servers.zygote.run(child))
        if kind == "receive":
            await self._call_back(anyio.Path(job.port), running)
        code = await running
        reported = child.reported.read_text() if child.reported.exists() else ""
        lines = child.trace.read_text().splitlines() if child.trace.exists() else []
        ran = Ran(code, reported, tuple(Point.parse(line) for line in lines))
        self.ran.append(ran)
        return ran

    async def collect(self) -> Ran:
        """Runs the collector on another machine until there is nothing left that it could do."""
        for _ in range(MAX_COLLECTIONS):
            ran = await self.run("collect", machine="elsewhere")
            found = await self.recorded()
            if ran.code or found is None or found.state in FINISHED or found.state is State.UNCONFIRMED:
                break
        return ran

    async def video_is_done(self) -> None:
        """Waits until the provider has finished every task."""
        while not all(task.finished for task in self.sandbox.tasks.all()):
            await asyncio.sleep(0.02)

    def submits(self) -> list[RecordedRequest]:
        """The paid calls that the provider received, except the one from outside."""
        return [call for call in self.sandbox.record.submits() if not self.outside or call.task_id != self.outside]

    def charged(self) -> tuple[str, ...]:
        """The tasks that the provider created for them."""
        own = (call.task_id or "" for call in self.sandbox.record.charged())
        return tuple(task_id for task_id in own if task_id != self.outside)

    async def owner_is_recorded(self) -> bool:
        """Whether the store has the owner of the task that was charged, so that no user needs to name it."""
        owners = [await self.ledger.tasks.owner(task_id) for task_id in self.charged()]
        return any(owner is not None and owner.key == self.key for owner in owners)

    async def recorded(self) -> Generation | None:
        """The record in the ledger."""
        entry = await self.ledger.read(self.key)
        return entry.generation if entry else None

    async def facts(self) -> Facts:
        """What the provider, the store and Prefect know so far."""
        found = await self.recorded()
        names = await self.ledger._store.names("videos/")
        superseded = {item.name for item in _superseded_objects(found)} if found else set()
        sent = {point.label for ran in self.ran for point in ran.points if point.moment == "after"}
        return Facts(
            key=self.key,
            posts=len(self.submits()),
            charged=self.charged(),
            state=found.state if found else None,
            task_id=found.task_id or "" if found else "",
            task_ids=tuple(sorted(found.task_ids)) if found else (),
            marked=await self.ledger.is_published(self.key) is not None,
            videos=tuple(name for name in names if name.endswith(".mp4") and name not in superseded),
            mismatches=await self._mismatches(found, names) if found else (),
            published="EVENT sora.generation.archived" in sent,
            failed=bool(self.ran[-1].code),
            reported=self.ran[-1].reported,
        )

    async def _mismatches(self, found: Generation, names: Sequence[str]) -> tuple[str, ...]:
        wrong = []
        objects = [*found.objects, *_superseded_objects(found)]
        if found.state is State.ARCHIVED and sorted(item.name for item in objects) != sorted(names):
            wrong.append(f"the record names {[item.name for item in objects]}, the archive has {names}")
        for item in objects:
            digest = await self.ledger._store.digest(item.name)
            if digest is None or digest.sha256 != item.sha256:
                wrong.append(f"{item.name} is not what the record says")
        videos = {found.task_id: found.video} | {
            task.task_id: item for task in _superseded(found) for item in task.objects if item.kind == "video"
        }
        for task_id, video in videos.items():
            task = self.sandbox.tasks.get(task_id)
            if video is not None and task is not None and task.video is not None:
                rendered = hashlib.sha256(task.video.read_bytes()).hexdigest()
                if video.sha256 != rendered:
                    wrong.append(f"{video.name} is not the video of {task_id}")
        return tuple(wrong)

    async def _retry_parent(self) -> None:
        """Retries the same flow run, as a user does in the UI."""
        async with get_client() as client:
            assert self.parent is not None
            await client.set_flow_run_state(self.parent, AwaitingRetry(), force=True)

    def _places(self) -> Places:
        provider, prefect = urlsplit(self.sandbox.base_url).netloc, urlsplit(self.servers.prefect.api_url).netloc
        return Places(provider=provider, store=self.servers.minio.endpoint, prefect=prefect)

    async def _call_back(self, port: anyio.Path, running: "asyncio.Task[int]") -> None:
        """Sends a callback as the provider does, once the receiver listens."""
        while not await port.exists():
            if running.done():
                return
            await asyncio.sleep(0.02)
        path = (self.api.callback_url_for(self.key) or "").removeprefix(self.api.callback_url or "")
        charged = self.charged()
        call = post(path, named(charged[0] if charged else None))
        with contextlib.suppress(ConnectionError):
            await exchange(int(await port.read_text()), call)


def _superseded(found: Generation) -> list[SupersededTask]:
    return [task for attempt in found.attempts for task in attempt.superseded]


def _superseded_objects(found: Generation) -> list[ArchivedObject]:
    """The archived objects of superseded tasks."""
    return [item for task in _superseded(found) for item in task.objects]


Calls = Literal["none", "live", "dropped"]
"""Whether the provider sends callbacks. `live`: a receiver in this process gets them, and is never killed. `dropped`:
they are lost, and the test itself sends a callback to a receiver that is about to be killed."""


@asynccontextmanager
async def open_environment(
    servers: Servers, calls: Calls = "none", *, initial_wait_seconds: float = VIDEO_SECONDS
) -> AsyncIterator[Environment]:
    """An environment, open until the block ends.

    Args:
        servers: what it uses.
        calls: whether the provider sends callbacks.
        initial_wait_seconds: how long a run waits before its first poll; by default until the video is done.
    """
    async with AsyncExitStack() as stack:
        settings = SandboxSettings(speed=600, video_height=90, data_dir=servers.video_folder)
        sandbox = stack.enter_context(SandboxServer(settings))
        api = make_api(
            sandbox, submit_timeout_seconds=SUBMIT_TIMEOUT_SECONDS, initial_wait_seconds=initial_wait_seconds
        )
        archive = make_archive(servers.minio)
        if calls == "live":
            receiver = await stack.enter_async_context(receiving(api, archive))
            api = receiver.api
        elif calls == "dropped":
            secret: Secret[str] = Secret(value=secrets.token_hex(16))
            api = api.model_copy(update={"callback_url": CALLBACK_URL, "callback_secret": secret})
        stored = await store_blocks(api, archive)
        store = archive.store()
        stack.push_async_callback(store.aclose)
        yield Environment(servers, sandbox, stored.api, archive, stored.name, Ledger(store))
