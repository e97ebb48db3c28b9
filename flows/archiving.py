"""Archives a finished task: the video, a poster and a description, each created or adopted.

An object is created, and not overwritten: the first process to write it wins, and later ones adopt it. So the record
matches the objects, even if two versions of this program, of Pillow or of FFmpeg work on one task.
"""

import contextlib
import functools
import hashlib
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Final

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from apixo import VideoRequest
from blocks.object_store import ObjectDigest, ObjectStore
from blocks.store_errors import PreconditionFailedError
from flows.fetching import FetchedVideo, poster_of
from flows.media.media_errors import DamagedVideoError, MediaError
from flows.media.videos import compare, decode, inspect_video, poster_jpeg
from flows.record import object_names
from flows.record.generation import ArchivedObject, Generation, Kind, PaidTask
from flows.record.pipeline_errors import ArchiveMismatchError

RECORDED_FACTS: Final = ("codec", "duration_seconds", "width", "height", "has_audio", "has_c2pa")


@dataclass(frozen=True, slots=True)
class Stored:
    """The objects of one task in the archive, and what the user should know about them."""

    objects: tuple[ArchivedObject, ...]
    warnings: tuple[str, ...]
    poster: bytes | None
    """The poster's JPEG; None if no frame could be decoded."""


async def store_task(paid: PaidTask, found: Generation, videos: list[FetchedVideo], store: ObjectStore) -> Stored:
    """Creates every object of a task, and reads the videos back.

    Args:
        found: the record of its generation, for the description.
        videos: the fetched videos, at least one.

    Raises:
        ArchiveMismatchError: a video read back differs from what was written.
        StoreError: the store did not answer, or rejected a request.
    """
    stored = [await _store_video(paid, found, video, store) for video in videos]
    objects = [item for item, _ in stored]
    warnings = tuple(warning for _, video in stored for warning in video.warnings)
    poster = None
    try:
        poster = await decode(_poster, stored[0][1])
    except MediaError as error:  # not an error of the video that was paid for
        warnings += (f"there is no poster: {error}",)
    else:
        objects.append(await _store(paid, object_names.POSTER_NAME, poster, "poster", object_names.POSTER_TYPE, store))
    objects.append(await _store_sidecar(paid, sidecar(found, paid, tuple(objects), warnings), store))
    return Stored(tuple(objects), warnings, poster)


def sidecar(
    found: Generation, paid: PaidTask, objects: tuple[ArchivedObject, ...], warnings: tuple[str, ...]
) -> dict[str, object]:
    """`generation.json` next to the video: what it is, where it comes from, how to verify it. Pure.

    All of it comes from the ledger and the files, and nothing from the run that writes it.
    """
    attempt = found.attempts[paid.attempt_number - 1]
    counts = found.task_id == paid.task_id  # otherwise these facts belong to the task that counts now
    return {
        "key": found.key,
        "version": _version(),
        "task_id": paid.task_id,
        "flow_run_id": attempt.claimed_by.flow_run_id,
        "model": attempt.model,
        "price": attempt.price,
        "currency": attempt.currency,
        "request": found.request.model_dump(),
        "claimed_at": attempt.claimed_at.isoformat(),
        "submitted_at": attempt.submitted_at.isoformat() if counts and attempt.submitted_at else None,
        "succeeded_at": found.succeeded_at.isoformat() if counts and found.succeeded_at else None,
        "provider_times_ms": found.provider_times_ms if counts else {},
        "result_urls": found.result_urls if counts else (),
        "objects": objects,
        "warnings": warnings,
    }


class _Described(BaseModel):
    """What another run's sidecar describes."""

    task_id: str | None
    objects: tuple[ArchivedObject, ...]


@functools.cache  # each call searches the installed files
def _version() -> str:
    return version("sora-pipeline")


async def _store_video(
    paid: PaidTask, found: Generation, video: FetchedVideo, store: ObjectStore
) -> tuple[ArchivedObject, FetchedVideo]:
    """Creates the object and reads it back. Returns it with the video that it contains."""
    name = paid.folder + video.path.name
    content_type = _media_type(video)
    attributes = _attributes(paid, name, video.sha256, content_type)
    created = await store.create_file(name, video.path, content_type=content_type, attributes=attributes)
    digest = await _read_back(name, store)
    if not created and digest.sha256 != video.sha256:
        adopted = await _adopted(name, digest, found.request.on(paid.model), video, store)
        if adopted is not None:
            return _video_object(name, adopted, store), adopted
    if digest.sha256 != video.sha256:  # the store has damaged it: only that version is overwritten
        with contextlib.suppress(PreconditionFailedError):
            await store.replace_file(
                name, video.path, etag=digest.etag, content_type=content_type, attributes=attributes
            )
        digest = await _read_back(name, store)
    if digest.sha256 != video.sha256:
        raise ArchiveMismatchError(
            f"{name} was written with {video.size_bytes} bytes, sha256 {video.sha256}, and read back as "
            f"{digest.size_bytes} bytes, sha256 {digest.sha256}. It will be written again."
        )
    return _video_object(name, video, store), video


async def _adopted(
    name: str, digest: ObjectDigest, requested: VideoRequest, video: FetchedVideo, store: ObjectStore
) -> FetchedVideo | None:
    """The video that another run has stored for the same task: its bytes may differ, as hosts may re-encode a result.

    None: it is gone or damaged.
    """
    path = video.path.with_name(f"stored-{video.path.name}")
    if not await store.get_file(name, path):
        return None
    try:
        facts = await decode(inspect_video, path, poster_of(path))
    except DamagedVideoError:
        return None
    warnings = compare(facts, requested)
    warnings.append("another run stored this result first; the host then served different bytes")
    return replace(
        video,
        path=path,
        sha256=digest.sha256,
        size_bytes=digest.size_bytes,
        facts=facts,
        poster=poster_of(path),
        warnings=(*facts.doubts, *warnings),
    )


def _poster(video: FetchedVideo) -> bytes:
    """The frame saved while the video was decoded; for a damaged video, any frame that decodes."""
    try:
        return video.poster.read_bytes()
    except FileNotFoundError:
        return poster_jpeg(video.path)


def _video_object(name: str, video: FetchedVideo, store: ObjectStore) -> ArchivedObject:
    facts = video.facts
    return ArchivedObject(
        kind="video",
        bucket=store.bucket,
        name=name,
        content_type=_media_type(video),
        size_bytes=video.size_bytes,
        sha256=video.sha256,
        damaged=facts is None,
        **({name: getattr(facts, name) for name in RECORDED_FACTS} if facts else {}),
    )


def _media_type(video: FetchedVideo) -> str:
    return video.facts.media_type if video.facts else "application/octet-stream"


def _attributes(paid: PaidTask, name: str, sha256: str, media_type: str) -> dict[str, str]:
    return object_names.attributes(name, key=paid.key, task_id=paid.task_id, sha256=sha256, media_type=media_type)


async def _store_sidecar(paid: PaidTask, made: dict[str, object], store: ObjectStore) -> ArchivedObject:
    """Creates the description, or adopts another run's description of the same objects."""
    name = paid.folder + object_names.SIDECAR_NAME
    data = to_json(made, indent=2)
    for _ in range(2):
        stored = await _store(paid, object_names.SIDECAR_NAME, data, "sidecar", object_names.SIDECAR_TYPE, store)
        if stored.sha256 == hashlib.sha256(data).hexdigest():
            return stored
        found = await store.get(name)
        try:
            there = _Described.model_validate_json(found.data if found else b"")
        except ValidationError:
            there = None
        if there is not None and (there.task_id, there.objects) == (made["task_id"], made["objects"]):
            return stored
        if found is not None:  # its run died before the poster, or lists objects that were not kept
            attributes = _attributes(paid, name, hashlib.sha256(data).hexdigest(), object_names.SIDECAR_TYPE)
            with contextlib.suppress(PreconditionFailedError):
                await store.put_if(
                    name, data, etag=found.etag, content_type=object_names.SIDECAR_TYPE, attributes=attributes
                )
    raise ArchiveMismatchError(f"{name} was changed by other processes on every attempt. It will be written again.")


async def _store(
    paid: PaidTask, own_name: str, data: bytes, kind: Kind, content_type: str, store: ObjectStore
) -> ArchivedObject:
    """Creates a small object, or adopts the existing one.

    It is not read back: each request is signed with the SHA-256 of its body, which the store verifies.
    """
    name = paid.folder + own_name
    attributes = _attributes(paid, name, hashlib.sha256(data).hexdigest(), content_type)
    try:
        await store.put_if(name, data, etag=None, content_type=content_type, attributes=attributes)
    except PreconditionFailedError:
        there = await store.get(name)
        data = there.data if there else data
    return ArchivedObject(
        kind=kind,
        bucket=store.bucket,
        name=name,
        content_type=content_type,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )


async def _read_back(name: str, store: ObjectStore) -> ObjectDigest:
    found = await store.digest(name)
    if found is None:
        raise ArchiveMismatchError(f"{name} was written but is not there. It will be written again.")
    return found
