"""What the steps of a generation work with: the API, the ledger, the archive, the spool, the clock."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import httpx
from prefect.blocks.core import Block
from prefect.runtime import flow_run
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from apixo import StatusClient
from blocks import ApixoApi, VideoArchive
from blocks.object_store import ObjectStore
from flows.clock import Clock
from flows.media.hosts import guarded_client
from flows.media.own_images import image_address
from flows.media.spool import spool_root
from flows.paid_call import PaymentThread, SpendGuard
from flows.record.errors import PipelineError
from flows.record.generation import Owner
from flows.record.ledger import Ledger
from flows.record.spend import Ceilings
from flows.record.usual import UsualTimes
from flows.signals.event_connection import EventConnection
from flows.signals.subscriber import Subscriber

B = TypeVar("B", bound=Block)

FILES_AT_ONCE: Final = 8
"""Videos of one flow run that are fetched at the same time, and as many that are archived: enough to fill a line, few
enough for one disk and for the memory that decoding takes."""


class Resources:
    """Opened once a flow run and shared by its steps. Plain attributes; nothing here decides anything.

    Not a dataclass or pydantic model on purpose: Prefect walks through those when they are task parameters.
    """

    def __init__(
        self,
        *,
        api: ApixoApi,
        archive: VideoArchive,
        client: StatusClient,
        store: ObjectStore,
        ledger: Ledger,
        web: httpx.AsyncClient,
        subscriber: Subscriber,
        spool: Path,
        payments: PaymentThread | None = None,
        options: str = "",
        clock: Clock | None = None,
    ) -> None:
        self.clock = clock or Clock()
        self.api = api
        self.archive = archive
        self.client = client
        self.store = store
        self.ledger = ledger
        self._payments = payments
        self.spending = SpendGuard(
            ledger, Ceilings(api.max_spend_per_day, api.max_spend_per_month), currency=api.currency,
            lease_seconds=api.lease_seconds, now=self.clock.now,
        )  # fmt: skip
        """Keeps this run below the ceilings."""
        self.usual = UsualTimes(ledger.newest)
        self.fetching, self.archiving = asyncio.Semaphore(FILES_AT_ONCE), asyncio.Semaphore(FILES_AT_ONCE)
        """Held while a video is fetched, and while it is archived; not between two tries."""
        self.options = options
        """What a `sora` command that a message shows needs to find the same blocks."""
        self.web = web
        """For image and result hosts only: it checks every address and never carries the API key."""
        self.events = EventConnection()
        """For the events that Prefect has to confirm."""
        self.subscriber = subscriber
        """Wakes waiters whose callback came; not subscribed where the API block has no `callback_url`."""
        self.spool = spool

    @property
    def payments(self) -> PaymentThread:
        """Where the paid call runs, and nowhere else.

        Raises:
            PipelineError: whoever opened these resources may not pay.
        """
        if self._payments is None:
            raise PipelineError("This process was not opened for paying. Nothing was sent.")
        return self._payments

    def image_address(self, url: str) -> str:
        """Where the provider fetches an image of a request for the next days. It may be a secret: see `own_images`."""
        valid_seconds = max(self.api.result_valid_hours * 3600, self.api.deadline_seconds)
        return image_address(url, self.archive, self.store, valid_seconds=valid_seconds)

    def owner(self) -> Owner:
        """This process and flow run, as a claim names them."""
        run_id = flow_run.id
        return Owner(host=socket.gethostname(), pid=os.getpid(), flow_run_id=str(run_id) if run_id else None)


@asynccontextmanager
async def open_resources(
    api: ApixoApi, archive: VideoArchive, *, pays: bool = False, spool: Path | None = None, options: str = ""
) -> AsyncIterator[Resources]:
    """Connects everything, and makes sure that the archive can keep a ledger before anything is paid.

    Args:
        api, archive: the blocks.
        pays: whether these resources can pay. Only what may submit asks for it.
        spool: where downloads are kept between two steps.
        options: what a `sora` command in a message needs to find the same blocks.

    Raises:
        StoreError: the archive is not reachable, refuses the keys, or ignores conditional writes.
    """
    client, store = api.status_client(), archive.store()
    web = guarded_client(allow_private_hosts=api.allow_private_hosts)
    payments = PaymentThread(api, archive) if pays else None
    subscriber = Subscriber()
    try:
        ledger = Ledger(store)
        await ledger.ensure_ready()
        opened = Resources(
            api=api,
            archive=archive,
            client=client,
            store=store,
            ledger=ledger,
            payments=payments,
            web=web,
            subscriber=subscriber,
            spool=spool or spool_root(),
            options=options,
        )
        try:
            yield opened
        finally:
            await opened.events.aclose()
            await opened.spending.aclose()
    finally:
        await subscriber.aclose()
        if payments is not None:
            await payments.aclose()
        await web.aclose()
        await client.aclose()
        await store.aclose()


async def load_block(block: type[B], name: str) -> B:
    """A stored block.

    Raises:
        PipelineError: there is none of that name, or it holds what the block does not take.
    """
    slug = block.get_block_type_slug()
    try:
        return await block.aload(name)
    except RuntimeError as error:
        if not isinstance(error.__cause__, ValidationError):
            raise
        problems = "; ".join(describe(problem) for problem in error.__cause__.errors())
        raise PipelineError(
            f"The {slug} block named {name!r} cannot be used: {problems}. Fix it in the Prefect UI under Blocks."
        ) from error
    except ValueError as error:
        raise PipelineError(
            f"There is no {slug} block named {name!r} ({error}). Create it in the Prefect UI under Blocks, "
            "or run `sora setup`."
        ) from error


def describe(problem: ErrorDetails) -> str:
    """One problem of a block or request: which field, and what is wrong. Without the value, which may be a secret."""
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else problem["msg"]


def command_options(api: str, archive: str) -> str:
    """The options by which a `sora` command finds these blocks; none for the default ones."""
    named = (("api", api), ("archive", archive))
    return "".join(f" --{option} {name}" for option, name in named if name != "default")
