"""The resources of a generation's steps: the API, the ledger, the archive, the work directory, the clock."""

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
"""How many videos of one flow run are fetched at the same time, and how many are archived: enough to saturate a network
connection, few enough for one disk and for the memory that decoding takes."""


class Resources:
    """What the reading, waiting, fetching and archiving steps need. Opened once per flow run.

    Plain attributes without logic. Deliberately not a dataclass or pydantic model: Prefect walks through those if they
    are task parameters.

    Args:
        options: the options with which a `sora` command in a message finds the same blocks.
    """

    def __init__(self, api: ApixoApi, archive: VideoArchive, *, options: str = "") -> None:
        self.clock = Clock()
        self.api, self.archive = api, archive
        self.client, self.store = api.status_client(), archive.store()
        self.ledger = Ledger(self.store)
        self.usual = UsualTimes(self.ledger.newest)
        self.options = options
        self.work_root = work_root()
        """Where downloads are kept between steps."""
        self.fetching, self.archiving = asyncio.Semaphore(FILES_AT_ONCE), asyncio.Semaphore(FILES_AT_ONCE)
        """Held while a video is fetched, and while it is archived, but not between two tries."""
        self.web = guarded_client(allow_private_hosts=api.allow_private_hosts)
        """For image and result hosts only: it checks every IP address and never sends the API key."""
        self.events = EventConnection()
        """For the events that Prefect must confirm."""
        self.subscriber = Subscriber()
        """Wakes waiting steps when their callback comes; not subscribed if the API block has no `callback_url`."""

    @classmethod
    @asynccontextmanager
    async def of_blocks(cls, api: str, archive: str) -> AsyncIterator[Self]:
        """Opens the resources with the stored blocks of these names.

        Raises:
            PipelineError: a block is missing or invalid, or the environment's proxies or certificates are invalid.
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
        """The URL from which the provider can fetch an image for the next days. It may be secret: see `own_images`."""
        valid_seconds = max(self.api.result_valid_hours * 3600, self.api.deadline_seconds)
        return image_address(url, self.archive, self.store, valid_seconds=valid_seconds)

    async def __aenter__(self) -> Self:
        """Makes sure, before anything is paid, that the archive can keep a ledger.

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
            for part in (self.store, self.client, self.web, self.subscriber, self.events):  # closed in reverse order
                closing.push_async_callback(part.aclose)


class PayingResources(Resources):
    """Resources that can also pay. Used only by flows that may submit requests."""

    def __init__(self, api: ApixoApi, archive: VideoArchive, *, options: str = "") -> None:
        super().__init__(api, archive, options=options)
        self.payments = PaymentThread(api, archive)
        """The only place where paid calls run."""
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
            for close in (super().aclose, self.payments.aclose, self.spending.aclose):  # closed in reverse order
                closing.push_async_callback(close)


async def load_block(block: type[B], name: str) -> B:
    """Loads a stored block.

    Raises:
        PipelineError: there is no block with that name, or it is invalid.
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
    """The options with which a `sora` command finds these blocks; empty for the default ones."""
    named = (("api", api), ("archive", archive))
    return "".join(f" --{option} {name}" for option, name in named if name != "default")
