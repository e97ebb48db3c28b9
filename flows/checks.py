"""What can be tried before money is spent: everything that a run needs before the paid call and after it."""

import hmac
import shutil
from collections.abc import Awaitable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Final, Literal

import httpx
from pydantic import BaseModel, Field

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
)
from apixo.constants import BASE_URL, RESULT_HOSTS
from blocks import ApixoApi, VideoArchive
from blocks.apixo_api import BLOCKS_HEADER
from blocks.errors import StoreError
from blocks.object_store import ObjectStore
from blocks.probe import ensure_ready, problems
from flows.balance import describe_balance, known_balance
from flows.media.errors import DownloadError, ForbiddenUrlError
from flows.media.hosts import guarded_client, open_stream
from flows.media.spool import spool_root
from flows.resources import B, load_block

FREE_BYTES: Final = 1_000_000_000
"""Eight videos of 100 MB at once, and some."""


class Finding(BaseModel):
    """One thing that was checked."""

    name: str = Field(description="What was checked.")
    outcome: Literal["ok", "warning", "error"] = Field(description="`error`: a run would fail, or could not end well.")
    detail: str = Field(description="What was seen, and for a warning or error what to do about it.")


async def check_setup(api: str, archive: str) -> list[Finding]:
    """Everything that a run in this process needs. It pays nothing; of the store it uses `probe/` and `incoming/`.

    Args:
        api, archive: the names of the blocks.
    """
    findings: list[Finding] = []
    api_block = await _tried(findings, f"block apixo-api/{api}", load_block(ApixoApi, api))
    archive_block = await _tried(findings, f"block video-archive/{archive}", load_block(VideoArchive, archive))
    if archive_block is not None:
        findings += await _store_findings(archive_block)
    findings.append(check_space(spool_root()))
    if api_block is None:
        return findings
    try:
        client = api_block.status_client()
        web = guarded_client(allow_private_hosts=api_block.allow_private_hosts)
    except ValueError as error:  # of the environment's proxies and certificates
        return [*findings, Finding(name="api", outcome="error", detail=str(error))]
    async with client, web:
        findings.append(await _api_finding(client, api_block))
        findings += await check_account(client, api_block)
        findings += await check_result_route(web, api_block)
        if api_block.callback_url:
            findings.append(await _callback_finding(web, api_block, archive_block))
    return findings


async def check_before_paying(client: StatusClient, store: ObjectStore, web: httpx.AsyncClient, api: ApixoApi) -> None:
    """The same for a dry run, which has opened what it needs.

    Raises:
        SoraError: the first thing that is in the way.
    """
    await ensure_ready(store, thorough=True)
    await check_api(client)
    for finding in await check_result_route(web, api):
        if finding.outcome == "error":
            raise DownloadError(f"{finding.name}: {finding.detail}", retryable=False)


async def check_api(client: StatusClient) -> None:
    """Asks the API about a task that does not exist: free of charge, and it shows what a submission would meet.

    Raises:
        ApixoError: the API cannot be reached, does not take the key, or answers otherwise than in its envelope.
    """
    try:
        await client.status_once("dry-run")
    except (BadRequestError, ModelNotFoundError, RateLimitError):
        pass  # it answers, and does not know the task
    except (NoReplyError, ServerError, UnexpectedReplyError):
        # How it answers about a task that does not exist is not documented; its balance is.
        if await known_balance(client) is None:
            raise


async def check_account(client: StatusClient, api: ApixoApi) -> list[Finding]:
    """What the account has left; nothing where the API does not give it."""
    balance = await known_balance(client)
    if balance is None:
        return []
    detail = describe_balance(balance, api)
    if balance <= 0 or (api.balance_warning_below is not None and balance < api.balance_warning_below):
        return [Finding(name="balance", outcome="warning", detail=f"{detail}. Top up the APIXO account.")]
    return [Finding(name="balance", outcome="ok", detail=detail)]


async def check_result_route(
    web: httpx.AsyncClient, api: ApixoApi, *, hosts: Sequence[str] = RESULT_HOSTS
) -> list[Finding]:
    """Asks for a small file by the very way that a result takes. The host of a result is known only after paying."""
    url = api.result_check_url or api.base_url
    try:
        await _knock(web, url)
    except ForbiddenUrlError as error:
        detail = f"{error}. Set result_check_url in the apixo-api block to a small file on a public host."
        return [Finding(name="result route", outcome="warning", detail=detail)]
    except DownloadError as error:
        detail = f"{error}. So would be a finished video: let this machine reach hosts outside, or set HTTPS_PROXY."
        return [Finding(name="result route", outcome="error", detail=detail)]
    found = [Finding(name="result route", outcome="ok", detail=f"{httpx.URL(url).host} answers")]
    for host in hosts if api.base_url == BASE_URL else ():
        try:
            await _knock(web, f"https://{host}/")
        except (ForbiddenUrlError, DownloadError) as error:
            detail = f"{error}. APIXO has served results from there: does a firewall let only its API through?"
            found.append(Finding(name=f"result host {host}", outcome="warning", detail=detail))
    return found


def check_space(folder: Path) -> Finding:
    """Whether the disk has room for videos on their way."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{free / 1e9:,.1f} GB free for videos on their way, at {folder}"
    if free < FREE_BYTES:
        return Finding(name="disk", outcome="error", detail=f"{detail}. Free some, or name another SORA_SPOOL_DIR.")
    return Finding(name="disk", outcome="ok", detail=detail)


async def _store_findings(archive: VideoArchive) -> list[Finding]:
    """One finding for each thing that is wrong with the store; one that says so if nothing is."""
    name = "archive"
    try:
        store = archive.store()
    except ValueError as error:
        return [Finding(name=name, outcome="error", detail=str(error))]
    try:
        found = [Finding(name=name, outcome="error", detail=str(error)) for error in await problems(store)]
        if found:
            return found
        notes, release = (await store.settings()).notes(), await store.stale_release()
    except StoreError as error:
        return [Finding(name=name, outcome="error", detail=str(error))]
    finally:
        await store.aclose()
    detail = f"bucket {archive.bucket} at {archive.endpoint} keeps conditional writes, also in a race; takes 5 MiB"
    found = [Finding(name=name, outcome="ok", detail="; ".join([detail, *notes]))]
    if release:
        detail = (
            f"MinIO of {release[:10]} ignores the conditions of writes while too few of its drives answer: then a "
            "generation could be paid twice. Use a MinIO built from its source after 2025-10-22."
        )
        found.append(Finding(name="archive release", outcome="warning", detail=detail))
    return found


async def _api_finding(client: StatusClient, api: ApixoApi) -> Finding:
    try:
        await check_api(client)
    except ApixoError as error:
        return Finding(name="api", outcome="error", detail=str(error))
    return Finding(name="api", outcome="ok", detail=f"{api.base_url} answers and takes the key")


async def _callback_finding(web: httpx.AsyncClient, api: ApixoApi, archive: VideoArchive | None) -> Finding:
    """Whether a receiver with the same blocks is behind its public address, with a trusted certificate."""
    polling = "Until then videos come by polling."
    try:
        async with open_stream(web, api.callback_check_url()) as response:
            status, digest = response.status_code, response.headers.get(BLOCKS_HEADER)
    except ForbiddenUrlError as error:
        return _callbacks(f"{error}. APIXO can call public addresses only.")
    except DownloadError as error:
        return _callbacks(f"{error}. Is `sora callbacks` up, and its address public? {polling}")
    if status != HTTPStatus.METHOD_NOT_ALLOWED:
        return _callbacks(
            f"{api.callback_url} answers {status}, as no receiver does. Is `sora callbacks` up, and does that address "
            f"lead to it? {polling}"
        )
    if digest is None:
        return _callbacks(
            f"The receiver at {api.callback_url} has another callback secret, so it would refuse APIXO's calls. Start "
            f"`sora callbacks` anew with these blocks. {polling}"
        )
    if archive is not None and not hmac.compare_digest(digest, api.blocks_digest(archive.bucket)):
        return _callbacks(
            f"The receiver at {api.callback_url} has another API key, API address or bucket than these blocks, so it "
            f"would not find their videos. Start `sora callbacks` anew with these blocks. {polling}"
        )
    return Finding(name="callbacks", outcome="ok", detail=f"{api.callback_url} leads to a receiver with these blocks")


def _callbacks(detail: str) -> Finding:
    return Finding(name="callbacks", outcome="warning", detail=detail)


async def _knock(web: httpx.AsyncClient, url: str) -> None:
    async with open_stream(web, url):
        pass


async def _tried(findings: list[Finding], name: str, load: Awaitable[B]) -> B | None:
    try:
        found = await load
    except SoraError as error:
        findings.append(Finding(name=name, outcome="error", detail=str(error)))
        return None
    findings.append(Finding(name=name, outcome="ok", detail="can be used"))
    return found
