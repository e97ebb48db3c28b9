"""Who appears on the stage: runs, collectors, callbacks and persons, each by the pipeline's own code."""

import asyncio
import hashlib
import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest import mock

import httpx
from prefect.blocks.system import Secret

from apixo import ApixoError, Succeeded, VideoRequest
from blocks import ApixoApi, VideoArchive
from blocks.errors import StoreError
from flows import steps
from flows.callbacks import answer_call
from flows.clock import Clock
from flows.collect_videos import collect
from flows.fetching import FetchedVideo
from flows.media.videos import VideoFacts
from flows.paid_call import SpendGuard
from flows.record.errors import PipelineError
from flows.record.generation import Attempt, Generation, PaidTask
from flows.record.ledger import Entry, Ledger
from flows.record.spend import Ceilings
from flows.record.usual import UsualTimes
from flows.resolution import allow_resubmission, look, resolve_as_task
from flows.resources import PayingResources
from flows.signals.events import EventConnection
from flows.signals.subscriber import Subscriber
from flows.submission import Submission, Terms
from tests.attack.model.promises import Permissions
from tests.attack.model.provider import Provider, StagedClient, StagedPayments, video_url
from tests.attack.model.stage import ACTING, Actor, Fate, StagedStore

EXPECTED: Final = (PipelineError, ApixoError, StoreError)
"""What a run may fail with. Anything else is a bug."""

API: Final = ApixoApi(
    api_key=Secret(value="key"),
    callback_url="https://callbacks.example.com",
    callback_secret=Secret(value="a secret of more than 16 characters"),
    poll_interval_seconds=300,  # each question is a step of the play
)
REQUEST: Final = VideoRequest(prompt="A red kite over dunes, slow dolly in, golden hour")


class WatchedLedger(Ledger):
    """Counts who has won a claim."""

    def __init__(self, *arguments: Any, won: Callable[[Generation], None], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._won = won

    async def claim(self, claimed: Generation, *, over: Entry | None) -> Entry | None:
        entry = await super().claim(claimed, over=over)
        if entry is not None:
            self._won(claimed)
        return entry


class StagedResources(PayingResources):
    """An actor's. It connects nothing, so it does without the constructor of real ones."""

    def __init__(
        self,
        archive: VideoArchive,
        client: StagedClient,
        ledger: Ledger,
        store: StagedStore,
        clock: Clock,
        actor: Actor,
        spool: Path,
    ) -> None:
        self.api, self.archive, self.clock = API, archive, clock
        self.client, self.ledger, self.store = client, ledger, store
        self.payments = StagedPayments(client, ledger, actor)
        self.spending = SpendGuard(ledger, Ceilings(), lease_seconds=API.lease_seconds, now=clock.now)
        self.usual = UsualTimes(ledger.newest)
        self.web, self.events, self.subscriber = NO_WEB, EventConnection(), Subscriber()
        self.fetching, self.archiving = asyncio.Semaphore(), asyncio.Semaphore()
        self.spool, self.options = spool, ""


@dataclass
class Cast:
    """What every actor works with.

    Attributes:
        claims: the claims that were won, by key and attempt number.
        permissions: what persons have allowed so far.
        reported: the ends that Prefect has heard of.
    """

    archive: VideoArchive
    provider: Provider
    spool: Path
    permissions: Permissions = field(default_factory=Permissions)
    claims: list[tuple[str, int]] = field(default_factory=list)
    reported: set[str] = field(default_factory=set)

    def resources(self, actor: Actor, store: StagedStore) -> PayingResources:
        """The pipeline's resources, with this actor's clocks, line and provider."""
        clock = Clock(sleep=actor.sleep, monotonic=actor.monotonic, now=actor.now, rng=lambda: 0.5)
        actor.reported = self.reported
        client = StagedClient(self.provider, actor)
        ledger = WatchedLedger(store, won=self._won, clock=clock)
        return StagedResources(self.archive, client, ledger, store, clock, actor, self.spool / actor.name)

    def _won(self, claimed: Generation) -> None:
        self.claims.append((claimed.key, claimed.attempt.number))

    async def run(
        self, key: str, resources: PayingResources, grant: str | None = None, *, refuse_duplicates: bool = False
    ) -> None:
        """`generate-video`, also as the subflow that a parent's retry starts anew: its key is the same.

        `grant` names the Prefect state by which a person sent the run back to work.
        """

        async def permission(attempts: Sequence[Attempt]) -> str | None:
            return None if grant in {attempt.granted_by for attempt in attempts} else grant

        if grant is not None:
            self.permissions.granted.add(grant)
        terms = Terms(may_submit_again=permission, waits=True, refuse_duplicates=refuse_duplicates)
        submitted = await Submission(key, REQUEST, resources, terms).run()
        paid = submitted.generation.task
        ended, status = await steps.wait.fn(paid, submitted, resources)
        await bring_home(paid, ended, status, resources)

    async def collect(self, key: str, resources: PayingResources) -> None:
        """`collect-videos` for one key."""
        await collect([key], resources)

    async def call_back(
        self, key: str, resources: PayingResources, *, attempt: int, claimed_task_id: str | None
    ) -> None:
        """The provider, or who has overheard it, calls about an attempt."""
        await answer_call(key, attempt, claimed_task_id, resources, notify=lambda _key, _task_id, _end: None)

    async def resolve(self, key: str, resources: PayingResources, *, task_id: str) -> None:
        """`sora resolve KEY --task-id …`: a person looks, thinks, and decides."""
        seen = await look(key, resources.ledger)
        await resources.clock.sleep(30)
        await resolve_as_task(seen, task_id, resources)

    async def allow(self, key: str, resources: PayingResources) -> None:
        """`sora resolve KEY --resubmit`."""
        seen = await look(key, resources.ledger)
        await resources.clock.sleep(30)
        decision = (key, seen.attempt.number)
        fresh = decision not in self.permissions.allowed
        self.permissions.allowed.add(decision)  # before it is written: the person may be killed in between
        try:
            await allow_resubmission(seen, resources)
        except PipelineError:
            if fresh:
                self.permissions.allowed.discard(decision)
            raise


NO_WEB: Final = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(500)))
"""Nothing here reaches a host outside: `fetched` stands for the downloads."""


async def bring_home(paid: PaidTask, known: Entry, status: Succeeded | None, resources: PayingResources) -> Generation:
    """`flows.collect_videos.retrieve`, whose steps are Prefect tasks and would need a server."""
    folder = resources.spool / paid.task_id
    videos = await steps.fetch.fn(paid, known, status, folder, resources)
    archived: Generation = await steps.archive.fn(paid, known, videos, resources)
    return archived


async def _download(
    found: Generation, urls: tuple[str, ...], folder: Path, web: httpx.AsyncClient, **how: bool
) -> list[FetchedVideo]:
    """Stands for the downloads: the video of a task is a text that names it."""
    del found, web, how
    await ACTING.get().sleep(2)
    path = folder / "video.mp4"
    video = video_of(urls[0])
    await asyncio.to_thread(_write, path, video)
    facts = VideoFacts("h264", 1280, 720, 4.0, 96, has_audio=True)
    return [FetchedVideo(path, hashlib.sha256(video).hexdigest(), len(video), facts, path.with_suffix(".jpg"), ())]


async def _deliver(happening: str, generation: Generation, connection: EventConnection, **_: Any) -> bool:
    """Stands for Prefect's confirmation of an event: it may not arrive, or arrive and its confirmation be lost."""
    del connection
    actor = ACTING.get()
    fate = await actor.halt("event")
    if fate is not Fate.REQUEST_LOST:
        assert happening == generation.state
        actor.reported.add(generation.end)
    return fate is Fate.GOES_WELL


def video_of(url: str) -> bytes:
    """What lies at an address."""
    return f"the video at {url}".encode()


def video_of_task(task_id: str) -> bytes:
    """What a task has made."""
    return video_of(video_url(task_id))


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@contextmanager
def set_up() -> Iterator[None]:
    """Takes away what needs a Prefect server or the network: events, tasks of a flow run, downloads, pictures.

    The log too: thousands of plays would fill the memory with it.
    """
    fetch, archive = (importlib.import_module(f"flows.steps.{step}") for step in ("fetch", "archive"))

    def nothing(**_: Any) -> None: ...

    with (
        mock.patch.object(logging.getLogger("sora"), "disabled", new=True),
        mock.patch("flows.signals.events.emit_event", nothing),
        mock.patch("flows.signals.events.deliver", _deliver),
        mock.patch("flows.collect_videos.retrieve", bring_home),
        mock.patch.object(fetch, "fetch_videos", _download),
        mock.patch("flows.archiving.poster_jpeg", return_value=b"a picture"),
        mock.patch.object(archive, "publish", mock.AsyncMock()),
    ):
        yield
