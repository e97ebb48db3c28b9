"""What the steps of a generation work with: the API, the ledger, the archive, the work directory, the clock."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, Self, TypeVar

from prefect.blocks.core import Block
from prefect.runtime import flow_run
from pydantic import ValidationError

from apixo.errors import describe_problem
from blocks import ApixoApi, VideoArchive
from flows.clock import Clock
from flows.media.guarded_client import guarded_client
from flows.media.own_images import image_address
from flows.media.work_directory import work_root
from flows.paid_call import PaymentThread, SpendGuard
from flows.record.generation import Owner
from flows.record.ledger import Ledger
from flows.record.monthly_spend import Ceilings
from flows.record.pipeline_errors import PipelineError
from flows.record.usual_times import UsualTimes
from flows.signals.events import EventConnection
from flows.signals.subscriber import Subscriber

B = TypeVar("B", bound=Block)

FILES_AT_ONCE: Final = 8
"""Videos of one flow run that are fetched at the same time, and as many that are archived: enough to fill a line, few
enough for one disk and for the memory that decoding takes."""


class Resources:
    """What the reading, waiting, fetching and archiving steps need. Opened once per flow run.

    Plain attributes; nothing here decides anything. Deliberately no dataclass or pydantic model: Prefect walks through
    those when they are task parameters.

    Args:
        options: what a `sora` command in a message needs to find the same blocks.
    """

    def __init__(self, api: ApixoApi, archive: VideoArchive, *, options: str = "") -> None:
        self.clock = Clock()
        self.api, self.archive = api, archive
        self.client, self.store = api.status_client(), archive.store()
        self.ledger = Ledger(self.store)
        self.usual = UsualTimes(self.ledger.newest)
        self.options = options
        self.work_root = work_root()
        """Where downloads are kept between two steps."""
        self.fetching, self.archiving = asyncio.Semaphore(FILES_AT_ONCE), asyncio.Semaphore(FILES_AT_ONCE)
        """Held while a video is fetched, and while it is archived; not between two tries."""
        self.web = guarded_client(allow_private_hosts=api.allow_private_hosts)
        """For image and result hosts only: it checks every address and never carries the API key."""
        self.events = EventConnection()
        """For the events that Prefect must confirm."""
        self.subscriber = Subscriber()
        """Wakes waiters whose callback came; not subscribed if the API block has no `callback_url`."""

    @classmethod
    @asynccontextmanager
    async def of_blocks(cls, api: str, archive: str) -> AsyncIterator[Self]:
        """Opened with the stored blocks of these names.

        Raises:
            PipelineError: a block is missing or invalid, or the environment's proxies or certificates are.
            StoreError: see `__aenter__`.
        """
        blocks = await load_block(ApixoApi, api), await load_block(VideoArchive, archive)
        try:
            made = cls(*blocks, options=command_options(api, archive))
        except ValueError as error:
            raise PipelineError(f"The blocks {api!r} and {archive!r} cannot be used: {error}.") from error
        async with made as opened:
            yield opened

    def image_url_for(self, url: str) -> str:
        """The URL from which the provider fetches an image for the next days. It may be secret: see `own_images`."""
        valid_seconds = max(self.api.result_valid_hours * 3600, self.api.deadline_seconds)
        return image_address(url, self.archive, self.store, valid_seconds=valid_seconds)

    async def __aenter__(self) -> Self:
        """Makes sure that the archive can keep a ledger, before anything is paid.

        Raises:
            StoreError: the archive is not reachable, rejects the keys, or ignores conditional writes.
        """
        try:
            await self.ledger.ensure_ready()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes all connections, even if one of them fails or the task is cancelled."""
        async with AsyncExitStack() as closing:
            for part in (self.store, self.client, self.web, self.subscriber, self.events):  # the last one first
                closing.push_async_callback(part.aclose)


class PayingResources(Resources):
    """Resources that can also pay. Only what may submit a request uses them."""

    def __init__(self, api: ApixoApi, archive: VideoArchive, *, options: str = "") -> None:
        super().__init__(api, archive, options=options)
        self.payments = PaymentThread(api, archive)
        """Where the paid call runs, and nowhere else."""
        ceilings = Ceilings(api.max_spend_per_day, api.max_spend_per_month)
        self.spending = SpendGuard(
            self.ledger, ceilings, currency=api.currency, lease_seconds=api.lease_seconds, now=self.clock.now
        )
        """Keeps this run below the ceilings."""

    def owner(self) -> Owner:
        """This process and flow run, as a claim names them."""
        run_id = flow_run.id
        return Owner(host=socket.gethostname(), pid=os.getpid(), flow_run_id=str(run_id) if run_id else None)

    async def aclose(self) -> None:
        """Releases what was reserved, ends the payment thread after its last call, then closes all connections."""
        async with AsyncExitStack() as closing:
            for close in (super().aclose, self.payments.aclose, self.spending.aclose):  # the last one first
                closing.push_async_callback(close)


async def load_block(block: type[B], name: str) -> B:
    """A stored block.

    Raises:
        PipelineError: there is none of that name, or it is invalid.
    """
    slug = block.get_block_type_slug()
    try:
        return await block.aload(name)
    except RuntimeError as error:
        if not isinstance(error.__cause__, ValidationError):
            raise
        problems = "; ".join(describe_problem(problem) for problem in error.__cause__.errors())
        raise PipelineError(
            f"The {slug} block named {name!r} is invalid: {problems}. Fix it in the Prefect UI under Blocks."
        ) from error
    except ValueError as error:
        raise PipelineError(
            f"There is no {slug} block named {name!r} ({error}). Create it in the Prefect UI under Blocks, "
            "or run `sora setup`."
        ) from error


def command_options(api: str, archive: str) -> str:
    """The options by which a `sora` command finds these blocks; none for the default ones."""
    named = (("api", api), ("archive", archive))
    return "".join(f" --{option} {name}" for option, name in named if name != "default")
