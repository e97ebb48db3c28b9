"""Checks, before any money is spent, everything that a run needs before and after the paid call."""

import difflib
import hashlib
import hmac
import shutil
from collections.abc import Awaitable, Sequence
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from typing import Final, Literal, Self

import httpx
from pydantic import BaseModel, Field

import apixo
import blocks
import flows
from apixo import (
    ApixoError,
    BadRequestError,
    ModelNotFoundError,
    NoReplyError,
    RateLimitError,
    ServerError,
    SoraError,
    StatusClient,
    UnexpectedReplyError,
    catalog,
)
from apixo.constants import BASE_URL, RESULT_HOSTS
from blocks import ApixoApi, VideoArchive
from blocks.apixo_api import BLOCKS_HEADER, CHECK_KEY
from blocks.object_store import ObjectStore
from blocks.probe import problems
from blocks.store_errors import StoreError, WrongClockError
from flows.balance import describe_balance, known_balance
from flows.media.guarded_client import guarded_client, open_stream
from flows.media.media_errors import DownloadError, ForbiddenUrlError
from flows.media.own_images import FOLDER, image_address
from flows.media.work_directory import work_root
from flows.record.pipeline_errors import PipelineError
from flows.resources import B, Resources, load_block

FREE_BYTES: Final = 1_000_000_000
"""Enough for eight videos of 100 MB at once, with some reserve."""
PROBE_IMAGE: Final = f"{FOLDER}probe.png"
"""It need not exist: a 404 also shows that the host answers."""
MISSPELLED: Final = 0.8
"""The similarity, from 0 to 1, from which a model's name counts as a misspelling of another. `sora2` has 0.9."""


class Finding(BaseModel):
    """One thing that was checked."""

    name: str = Field(description="What was checked.")
    outcome: Literal["ok", "warning", "error"] = Field(description="`error`: a run would fail, or could not finish.")
    detail: str = Field(description="What was found, and for a warning or error what to do about it.")

    @classmethod
    def ok(cls, name: str, detail: str) -> Self:
        return cls(name=name, outcome="ok", detail=detail)

    @classmethod
    def warning(cls, name: str, detail: str) -> Self:
        return cls(name=name, outcome="warning", detail=detail)

    @classmethod
    def error(cls, name: str, detail: str) -> Self:
        return cls(name=name, outcome="error", detail=detail)


async def check_setup(api: str, archive: str) -> list[Finding]:
    """Checks everything that a run in this process needs. It pays nothing, and writes to `probe/` and `incoming/`."""
    findings: list[Finding] = [Finding.ok("code", this_code())]
    api_block = await _try_load(findings, f"block apixo-api/{api}", load_block(ApixoApi, api))
    archive_block = await _try_load(findings, f"block video-archive/{archive}", load_block(VideoArchive, archive))
    if archive_block is not None:
        findings += await _store_findings(archive_block)
    if api_block is None:
        return [*findings, check_space(work_root())]
    try:
        client = api_block.status_client()
        web = guarded_client(allow_private_hosts=api_block.allow_private_hosts)
    except ValueError as error:  # from the environment's proxies and certificates
        return [*findings, check_space(work_root()), Finding.error("api", str(error))]
    async with client, web:
        findings.append(await _api_finding(client, api_block))
        findings += await check_result_route(web, api_block)
        findings += await _other_findings(client, web, api_block, archive_block)
    return findings


async def _other_findings(
    client: StatusClient, web: httpx.AsyncClient, api: ApixoApi, archive: VideoArchive | None
) -> list[Finding]:
    """Checks what a run needs besides the API, the archive and the route to results, with at least one finding each."""
    findings = [await check_account(client, api), *check_prices(api)]
    if archive is not None:
        findings.append(await _image_finding(web, archive))
    if url := api.callback_url_for(CHECK_KEY, 0):
        findings.append(await _callback_finding(web, url, api, archive))
    else:
        findings.append(Finding.ok("callbacks", "none: the apixo-api block has no callback_url, so runs poll"))
    findings.append(check_space(work_root()))
    return findings


async def check_before_paying(resources: Resources) -> list[Finding]:
    """The same checks for a dry run, which has already opened its resources.

    Returns:
        Findings without errors: clock, the routes of results and images, balance, prices, callbacks, disk.

    Raises:
        SoraError: the first error found.
    """
    client, web, api = resources.client, resources.web, resources.api
    if errors := await problems(resources.store):
        raise errors[0]
    await check_api(client)
    checked = [
        await _clock_finding(resources.store),
        *await check_result_route(web, api),
        *await _other_findings(client, web, api, resources.archive),
    ]
    for finding in checked:
        if finding.outcome == "error":
            raise PipelineError(f"{finding.name}: {finding.detail}")
    return checked


async def check_api(client: StatusClient) -> None:
    """Polls a task that does not exist: free of charge, and it shows whether a submission would get through.

    Raises:
        ApixoError: the API cannot be reached, rejects the key, or answers without its envelope.
    """
    try:
        await client.status_once("dry-run")
    except (BadRequestError, ModelNotFoundError, RateLimitError):
        pass  # it answers in its envelope, and accepts the key
    except (NoReplyError, ServerError, UnexpectedReplyError):
        # The answer for a task that does not exist is undocumented. The balance is documented.
        if await known_balance(client) is None:
            raise


def this_code() -> str:
    """The version of the code in this process, with a digest of its modules that does not depend on their location."""
    digest = hashlib.sha256()
    for package in (apixo, blocks, flows):
        root = Path(next(iter(package.__path__)))
        for path in sorted(root.rglob("*.py")) + sorted(root.rglob("*.json")):
            digest.update(f"{root.name}/{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return f"{version('sora-pipeline')}+{digest.hexdigest()[:12]}"


async def check_account(client: StatusClient, api: ApixoApi) -> Finding:
    """The account's balance, if the API provides it."""
    balance = await known_balance(client)
    if balance is None:
        detail = "unknown: the API does not provide it"
        if api.require_balance or api.balance_warning_below is not None:
            detail += ". So require_balance and balance_warning_below of the apixo-api block have no effect."
            return Finding.warning("balance", detail)
        return Finding.ok("balance", detail)
    detail = describe_balance(balance, api)
    if balance <= 0 or (api.balance_warning_below is not None and balance < api.balance_warning_below):
        return Finding.warning("balance", f"{detail}. Top up the APIXO account.")
    return Finding.ok("balance", detail)


def check_prices(api: ApixoApi) -> list[Finding]:
    """A warning for each price whose model is probably misspelled. Models outside the catalog are allowed."""
    known = catalog.models()
    found = []
    for name in sorted(api.prices.keys() - known.keys()):
        if near := difflib.get_close_matches(name, known, n=1, cutoff=MISSPELLED):
            detail = f"prices names {name!r}, which is not in the catalog; did you mean {near[0]}?"
            found.append(Finding.warning("prices", detail))
    return found


async def _image_finding(web: httpx.AsyncClient, archive: VideoArchive) -> Finding:
    """Whether APIXO can reach images in the archive, checked with the same kind of URL that it would get."""
    name, only = "image route", "Only images given as files or s3:// need it."
    try:
        store = archive.store()
    except ValueError as error:
        return Finding.warning(name, f"{error}. {only}")
    try:
        address = image_address(f"s3://{archive.bucket}/{PROBE_IMAGE}", archive, store, valid_seconds=60)
        await _check_reachable(web, address)
    except ForbiddenUrlError as error:
        detail = f"APIXO cannot fetch the archive's images: {error}. Set public_url in the video-archive block. {only}"
        return Finding.warning(name, detail)
    except DownloadError as error:
        detail = f"The archive's images cannot be fetched: {error}. Check public_url in the video-archive block. {only}"
        return Finding.warning(name, detail)
    finally:
        await store.aclose()
    return Finding.ok(name, f"{httpx.URL(address).host} serves images in the archive; others use the result route")


async def check_result_route(
    web: httpx.AsyncClient, api: ApixoApi, *, hosts: Sequence[str] = RESULT_HOSTS
) -> list[Finding]:
    """Fetches a small file over the same route as results. The actual host of a result is known only after paying."""
    name, url = "result route", api.result_check_url or api.base_url
    try:
        await _check_reachable(web, url)
    except ForbiddenUrlError as error:
        detail = f"{error}. Set result_check_url in the apixo-api block to a small file on a public host."
        return [Finding.warning(name, detail)]
    except DownloadError as error:
        detail = f"{error}. So would a finished video: let this machine reach external hosts, or set HTTPS_PROXY."
        return [Finding.error(name, detail)]
    found = [Finding.ok(name, f"{httpx.URL(url).host} answers")]
    for host in hosts if api.base_url == BASE_URL else ():
        try:
            await _check_reachable(web, f"https://{host}/")
        except (ForbiddenUrlError, DownloadError) as error:
            detail = f"{error}. APIXO has served results from there: does a firewall allow only its API?"
            found.append(Finding.warning(f"result host {host}", detail))
    return found


def check_space(folder: Path) -> Finding:
    """Whether the disk has room for videos in progress."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{free / 1e9:,.1f} GB free for videos in progress, at {folder}"
    if free < FREE_BYTES:
        return Finding.error("disk", f"{detail}. Free some, or set another SORA_WORK_DIR.")
    return Finding.ok("disk", detail)


async def _store_findings(archive: VideoArchive) -> list[Finding]:
    """One finding per error of the store; without errors, its state, its clock and possibly its outdated release."""
    name = "archive"
    try:
        store = archive.store()
    except ValueError as error:
        return [Finding.error(name, str(error))]
    try:
        found = [
            Finding(name="clock" if isinstance(error, WrongClockError) else name, outcome="error", detail=str(error))
            for error in await problems(store)
        ]
        if found:
            return found
        settings = await store.settings()
        clock = await _clock_finding(store)
    except StoreError as error:
        return [Finding.error(name, str(error))]
    finally:
        await store.aclose()
    detail = f"bucket {archive.bucket} at {archive.endpoint} supports conditional writes, even in a race; accepts 5 MiB"
    found = [Finding.ok(name, "; ".join([detail, *settings.notes()])), clock]
    if release := settings.stale_release:
        detail = (
            f"MinIO of {release[:10]} ignores conditions on writes while too few of its drives answer, so a "
            "generation could be paid twice. Use a MinIO built from source after 2025-10-22."
        )
        found.append(Finding.warning("archive release", detail))
    return found


async def _clock_finding(store: ObjectStore) -> Finding:
    """How far this machine's clock is off from the store's. Too large an offset is reported by the store's checks."""
    offset = await store.clock_offset_seconds()
    if offset is None:
        detail = "unknown: the object store's replies have no date. Use NTP to be sure that the clock is right."
        return Finding.warning("clock", detail)
    return Finding.ok("clock", f"within {max(abs(offset), 1):.0f} s of the object store's")


async def _api_finding(client: StatusClient, api: ApixoApi) -> Finding:
    try:
        await check_api(client)
    except ApixoError as error:
        return Finding.error("api", str(error))
    return Finding.ok("api", f"{api.base_url} answers and accepts the key")


async def _callback_finding(web: httpx.AsyncClient, url: str, api: ApixoApi, archive: VideoArchive | None) -> Finding:
    """Whether the callback URL leads to a receiver with the same blocks, with a trusted certificate."""
    name, polling = "callbacks", "Until then, runs poll for their videos."
    try:
        async with open_stream(web, url) as response:
            status, digest = response.status_code, response.headers.get(BLOCKS_HEADER)
    except ForbiddenUrlError as error:
        return Finding.warning(name, f"{error}. APIXO can only call public URLs.")
    except DownloadError as error:
        return Finding.warning(name, f"{error}. Is `sora callbacks` running, and its URL public? {polling}")
    if status != HTTPStatus.METHOD_NOT_ALLOWED:
        problem = (
            f"{api.callback_url} answers {status}, as no receiver does. Is `sora callbacks` running, and does that URL "
            "lead to it?"
        )
    elif digest is None:
        problem = (
            f"The receiver at {api.callback_url} has a different callback secret, so it would reject APIXO's calls. "
            "Restart `sora callbacks` with these blocks."
        )
    elif archive is not None and not hmac.compare_digest(digest, api.blocks_digest(archive.bucket)):
        problem = (
            f"The receiver at {api.callback_url} has a different API key, API URL or bucket than these blocks, so it "
            "would not find their videos. Restart `sora callbacks` with these blocks."
        )
    else:
        return Finding.ok(name, f"{api.callback_url} leads to a receiver with these blocks")
    return Finding.warning(name, f"{problem} {polling}")


async def _check_reachable(web: httpx.AsyncClient, url: str) -> None:
    async with open_stream(web, url):
        pass


async def _try_load(findings: list[Finding], name: str, load: Awaitable[B]) -> B | None:
    try:
        found = await load
    except SoraError as error:
        findings.append(Finding.error(name, str(error)))
        return None
    findings.append(Finding.ok(name, "is usable"))
    return found
