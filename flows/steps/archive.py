"""Puts the video, a poster and a description into the archive, reads them back, and only then says so."""

import asyncio
import hashlib
from importlib.metadata import version

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel

from flows import generation as transitions
from flows import layout
from flows.announcements import announce
from flows.errors import ArchiveMismatchError, LedgerError
from flows.generation import ArchivedObject, Generation, State
from flows.media.errors import MediaError
from flows.media.videos import poster_jpeg
from flows.progress import run_logger, tell
from flows.resources import Resources
from flows.steps.fetch import FetchedVideo
from flows.steps.retrying import JITTER_FACTOR, RETRIES, retry_transient


@task(
    name="archive",
    task_run_name="archive {key}",
    retries=RETRIES,
    retry_jitter_factor=JITTER_FACTOR,
    retry_condition_fn=retry_transient,
    cache_policy=NO_CACHE,
    persist_result=False,
)
async def archive(key: str, videos: list[FetchedVideo] | None, resources: Resources) -> Generation:
    """Uploads under fixed names, reads back by size and checksum, then the ledger says archived, then the event.

    Several runs may do this at once: all write the same bytes under the same names.

    Args:
        key: the generation.
        videos: what fetch brought; None when the ledger says that all is archived.
        resources: the archive and the ledger.

    Raises:
        ArchiveMismatchError: an object read back is not what was written. Retried.
        StoreError: the store did not answer, or refused. Retried when it did not answer.
    """
    logger = run_logger()
    entry = await resources.ledger.read(key)
    if entry is None:
        raise LedgerError(f"There is no record of {key} in the ledger any more.", key=key)
    found = entry.generation
    if found.state is State.ARCHIVED:
        logger.info("%s is archived already, as %s.", key, found.video.name if found.video else "?")
        return await _told(found, resources, found=True)
    if not videos:
        raise LedgerError(f"There is nothing to archive for {key}.", key=key)
    tell(key, "archive", "uploading")
    folder = layout.folder(key, found.attempt.claimed_at)
    objects = [await _upload_video(folder, video, resources) for video in videos]
    warnings = tuple(warning for video in videos for warning in video.warnings)
    try:
        poster = await asyncio.to_thread(poster_jpeg, videos[0].path)
    except MediaError as error:  # the video is what was paid for
        warnings += (f"there is no poster: {error}",)
    else:
        objects.append(await _upload(folder + layout.POSTER_NAME, poster, "poster", layout.POSTER_TYPE, resources))
    description = sidecar(found, tuple(objects), warnings).model_dump_json(indent=2).encode()
    objects.append(await _upload(folder + layout.SIDECAR_NAME, description, "sidecar", layout.SIDECAR_TYPE, resources))
    entry = await resources.ledger.change(
        key,
        lambda now: transitions.archived(now, objects=tuple(objects), warnings=warnings, now=resources.now()),
    )
    logger.info("Archived %s as %s/%s.", key, resources.store.bucket, folder)
    return await _told(entry.generation, resources, found=False)


async def _told(archived: Generation, resources: Resources, *, found: bool) -> Generation:
    await announce(archived, resources, found=found)
    tell(archived.key, "archive", archived.video.name if archived.video else "archived", fraction=1.0, done=True)
    return archived


class Sidecar(BaseModel):
    """`generation.json` beside the video: what it is, where it comes from, how to check it.

    All of it comes from the ledger and the files, none from this run, so every run writes the same bytes.
    """

    key: str
    version: str
    task_id: str | None
    flow_run_id: str | None
    request: dict[str, object]
    claimed_at: str
    submitted_at: str | None
    succeeded_at: str | None
    provider_times_ms: dict[str, int | None]
    result_urls: tuple[str, ...]
    objects: tuple[ArchivedObject, ...]
    warnings: tuple[str, ...]


def sidecar(found: Generation, objects: tuple[ArchivedObject, ...], warnings: tuple[str, ...]) -> Sidecar:
    """The description of a generation that is about to be archived. Pure."""
    attempt = found.attempt
    return Sidecar(
        key=found.key,
        version=version("sora-pipeline"),
        task_id=found.task_id,
        flow_run_id=attempt.claimed_by.flow_run_id,
        request=found.request.model_dump(),
        claimed_at=attempt.claimed_at.isoformat(),
        submitted_at=attempt.submitted_at.isoformat() if attempt.submitted_at else None,
        succeeded_at=found.succeeded_at.isoformat() if found.succeeded_at else None,
        provider_times_ms=found.provider_times_ms,
        result_urls=found.result_urls,
        objects=objects,
        warnings=warnings,
    )


async def _upload_video(folder: str, video: FetchedVideo, resources: Resources) -> ArchivedObject:
    name, facts = folder + video.path.name, video.facts
    await resources.store.put_file(name, video.path, content_type=layout.VIDEO_TYPE)
    await _read_back(name, facts.size_bytes, video.sha256, resources)
    return ArchivedObject(
        kind="video",
        bucket=resources.store.bucket,
        name=name,
        content_type=layout.VIDEO_TYPE,
        size_bytes=facts.size_bytes,
        sha256=video.sha256,
        codec=facts.codec,
        duration_seconds=facts.duration_seconds,
        width=facts.width,
        height=facts.height,
        has_audio=facts.has_audio,
    )


async def _upload(name: str, data: bytes, kind: str, content_type: str, resources: Resources) -> ArchivedObject:
    sha256 = hashlib.sha256(data).hexdigest()
    await resources.store.put(name, data, content_type=content_type)
    await _read_back(name, len(data), sha256, resources)
    return ArchivedObject.model_validate(
        {
            "kind": kind,
            "bucket": resources.store.bucket,
            "name": name,
            "content_type": content_type,
            "size_bytes": len(data),
            "sha256": sha256,
        }
    )


async def _read_back(name: str, size_bytes: int, sha256: str, resources: Resources) -> None:
    found = await resources.store.digest(name)
    if found is None or (found.size_bytes, found.sha256) != (size_bytes, sha256):
        got = f"{found.size_bytes} bytes, sha256 {found.sha256}" if found else "nothing"
        raise ArchiveMismatchError(
            f"{name} was written with {size_bytes} bytes, sha256 {sha256}, and read back as {got}. It is written again."
        )
