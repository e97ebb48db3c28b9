"""What the actors do: runs, collectors, callbacks and users' commands, each with the pipeline's own code."""

import asyncio
import hashlib
import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest import mock

import httpx
from prefect.blocks.system import Secret

from apixo import ApixoError, Succeeded, VideoRequest
from blocks import ApixoApi, VideoArchive
from blocks.store_errors import StoreError
from flows import steps
from flows.callbacks import answer_call
from flows.clock import Clock
from flows.collect_videos import collect
from flows.fetching import FetchedVideo
from flows.media.videos import VideoFacts
from flows.paid_call import SpendGuard
from flows.record.generation import Generation, PaidTask
from flows.record.ledger import Entry, Ledger
from flows.record.monthly_spend import Ceilings
from flows.record.pipeline_errors import PipelineError
from flows.record.usual_times import UsualTimes
from flows.resolution import allow_resubmission, load_generation, resolve_as_task
from flows.resources import PayingResources
from flows.signals.events import EventConnection
from flows.signals.subscriber import Subscriber
from flows.submission import Submission, Terms
from tests.attack.model.invariants import Permissions
from tests.attack.model.provider import Provider, SimulatedClient, SimulatedPayments, video_url
from tests.attack.model.scheduler import CURRENT_ACTOR, Actor, Delivery, SimulatedStore

EXPECTED: Final = (PipelineError, ApixoError, StoreError)
"""The errors that a run may raise. Any other is a bug."""

API: Final = ApixoApi(
    api_key=Secret(value="key"),
    callback_url="https://callbacks.example.com",
    callback_secret=Secret(value="a secret of more than 16 characters"),
    poll_interval_seconds=300,  # each poll is a step of the simulation
)
REQUEST: Final = VideoRequest(prompt="A red kite over dunes, slow dolly in, golden hour")


class ObservedLedger(Ledger):
    """Reports each claim that succeeds."""

    def __init__(self, *arguments: Any, on_claim: Callable[[Generation], None], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._on_claim = on_claim

    async def claim(self, claimed: Generation, *, over: Entry | None) -> Entry | None:
        entry = await super().claim(claimed, over=over)
        if entry is not None:
            self._on_claim(claimed)
        return entry


class SimulatedResources(PayingResources):
    """The resources of one actor. They open no connections, so the real constructor is not called."""

    def __init__(
        self,
        archive: VideoArchive,
        client: SimulatedClient,
        ledger: Ledger,
        store: SimulatedStore,
        clock: Clock,
        actor: Actor,
        work_root: Path,
    ) -> None:
        self.api, self.archive, self.clock = API, archive, clock
        self.client, self.ledger, self.store = client, ledger, store
        self.payments = SimulatedPayments(client, ledger, actor)
        self.spending = SpendGuard(ledger, Ceilings(), lease_seconds=API.lease_seconds, now=clock.now)
        self.usual = UsualTimes(ledger.newest)
        self.web, self.events, self.subscriber = NO_WEB, EventConnection(), Subscriber()
        self.fetching, self.archiving = asyncio.Semaphore(), asyncio.Semaphore()
        self.work_root, self.options = work_root, ""


@dataclass
class Pipeline:
    """The entry points of the pipeline, and what its actors share.

    Attributes:
        claims: the claims that succeeded, as key and attempt number.
        permissions: what users have allowed so far.
        published: the ends whose events have reached Prefect.
    """

    archive: VideoArchive
    provider: Provider
    work_root: Path
    permissions: Permissions = field(default_factory=Permissions)
    claims: list[tuple[str, int]] = field(default_factory=list)
    published: set[str] = field(default_factory=set)

    def resources(self, actor: Actor, store: SimulatedStore) -> PayingResources:
        """The pipeline's resources, with this actor's clocks, store and client."""
        clock = Clock(sleep=actor.sleep, monotonic=actor.monotonic, now=actor.now, rng=lambda: 0.5)
        actor.published = self.published
        client = SimulatedClient(self.provider, actor)
        ledger = ObservedLedger(store, on_claim=self._claimed, clock=clock)
        return SimulatedResources(self.archive, client, ledger, store, clock, actor, self.work_root / actor.name)

    def _claimed(self, claimed: Generation) -> None:
        self.claims.append((claimed.key, claimed.attempt.number))

    async def run(
        self, key: str, resources: PayingResources, grant: str | None = None, *, refuse_duplicates: bool = False
    ) -> None:
        """`generate-video`, also as the subflow that a parent's retry starts again under the same key.

        `grant` names the Prefect state in which a user has restarted the run.
        """

        async def permission(failed: Generation) -> str | None:
            return None if grant in {attempt.granted_by for attempt in failed.attempts} else grant

        if grant is not None:
            self.permissions.granted.add(grant)
        terms = Terms(may_submit_again=permission, waits=True, refuse_duplicates=refuse_duplicates)
        submitted = await Submission(key, REQUEST, resources, terms).run()
        paid = submitted.generation.task
        ended, status = await steps.wait.fn(paid, submitted, resources)
        await retrieve(paid, ended, status, resources)

    async def collect(self, key: str, resources: PayingResources) -> None:
        """`collect-videos` for one key."""
        await collect([key], resources)

    async def call_back(
        self, key: str, resources: PayingResources, *, attempt: int, claimed_task_id: str | None
    ) -> None:
        """A callback about an attempt, from the provider or from anyone who knows the URL."""
        await answer_call(key, attempt, claimed_task_id, resources, notify=lambda _key, _task_id, _end: None)

    async def resolve(self, key: str, resources: PayingResources, *, task_id: str) -> None:
        """`sora resolve KEY --task-id …`: the user reads the record, thinks, and decides."""
        seen = await load_generation(key, resources.ledger)
        await resources.clock.sleep(30)
        await resolve_as_task(seen, task_id, resources)

    async def allow(self, key: str, resources: PayingResources) -> None:
        """`sora resolve KEY --resubmit`."""
        seen = await load_generation(key, resources.ledger)
        await resources.clock.sleep(30)
        decision = (key, seen.attempt.number)
        fresh = decision not in self.permissions.allowed
        self.permissions.allowed.add(decision)  # before it is written: the command may be killed in between
        try:
            await allow_resubmission(seen, resources)
        except PipelineError:
            if fresh:
                self.permissions.allowed.discard(decision)
            raise


NO_WEB: Final = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(500)))
"""No other host is reached here: `_download` replaces the downloads."""


async def retrieve(paid: PaidTask, known: Entry, status: Succeeded | None, resources: PayingResources) -> Generation:
    """Replaces `flows.collect_videos.retrieve`, whose steps are Prefect tasks and would need a server."""
    folder = resources.work_root / paid.task_id
    videos = await steps.fetch.fn(paid, known, status, folder, resources)
    archived: Generation = await steps.archive.fn(paid, known, videos, resources)
    return archived


async def _download(
    found: Generation, urls: tuple[str, ...], folder: Path, web: httpx.AsyncClient, **how: bool
) -> list[FetchedVideo]:
    """Replaces the downloads: the video of a task is a text that contains its URL."""
    del found, web, how
    await CURRENT_ACTOR.get().sleep(2)
    path = folder / "video.mp4"
    video = video_of(urls[0])
    await asyncio.to_thread(_write, path, video)
    facts = VideoFacts("h264", 1280, 720, 4.0, 96, has_audio=True)
    return [FetchedVideo(path, hashlib.sha256(video).hexdigest(), len(video), facts, path.with_suffix(".jpg"), ())]


async def _deliver(happening: str, generation: Generation, connection: EventConnection, **_: Any) -> bool:
    """Replaces the delivery of an event to Prefect: the event may be lost, or only its confirmation."""
    del connection
    actor = CURRENT_ACTOR.get()
    delivery = await actor.pause_before("event")
    if delivery is not Delivery.REQUEST_LOST:
        assert happening == generation.state
        actor.published.add(generation.end_id)
    return delivery is Delivery.OK


def video_of(url: str) -> bytes:
    """The video at a URL."""
    return f"the video at {url}".encode()


def video_of_task(task_id: str) -> bytes:
    """The video of a task."""
    return video_of(video_url(task_id))


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@contextmanager
def without_servers() -> Iterator[None]:
    """Replaces what needs a Prefect server or the network: events, tasks of a flow run, downloads, posters.

    Logging is off, because the log of thousands of examples would fill the memory.
    """
    fetch, archive = (importlib.import_module(f"flows.steps.{step}") for step in ("fetch", "archive"))

    def nothing(**_: Any) -> None: ...

    with (
        mock.patch.object(logging.getLogger("sora"), "disabled", new=True),
        mock.patch("flows.signals.events.emit_event", nothing),
        mock.patch("flows.signals.events.deliver", _deliver),
        mock.patch("flows.collect_videos.retrieve", retrieve),
        mock.patch.object(fetch, "fetch_videos", _download),
        mock.patch("flows.archiving.poster_jpeg", return_value=b"a picture"),
        mock.patch.object(archive, "publish", mock.AsyncMock()),
    ):
        yield
