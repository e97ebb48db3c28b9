"""Archived videos without a run, and a gallery with a browser in front of it."""

import hashlib
import io
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx
from PIL import Image
from pydantic import SecretStr

from apixo import Failed, Succeeded, VideoRequest
from blocks import VideoArchive
from blocks.object_store import ObjectStore
from deployments.gallery.prefect_links import PrefectLinks
from flows.record import transitions
from flows.record.generation import ArchivedObject, Generation, Owner, State
from flows.record.ledger import record_name

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
SECRET = "a-gateway-secret-for-tests"
PASSWORD = "open sesame please"
VIDEO = bytes(range(256)) * 400


def made(
    key: str,
    prompt: str = "Dunes",
    *,
    state: State = State.ARCHIVED,
    at: datetime = NOW,
    run: str | None = None,
    price: Decimal | None = None,
    batch: str | None = None,
    **fields: Any,
) -> Generation:
    """A record as the pipeline writes it."""
    request = VideoRequest(prompt=prompt, **fields)
    owner = Owner(host="h", pid=1, flow_run_id=run)
    found = transitions.claim(
        None, key=key, request=request, owner=owner, lease_seconds=1, now=at, price=price, batch=batch,
        currency=None if price is None else "USD",
    )  # fmt: skip
    if state is State.CLAIMED:
        return found
    if state is State.UNCONFIRMED:
        return found.model_copy(
            update={"state": state, "attempts": (found.attempt.model_copy(update={"state": state}),)}
        )
    found = transitions.submitted(found, attempt_number=1, task_id=f"task-{key}", now=at)
    if state is State.FAILED:
        failed = Failed(task_id=f"task-{key}", state="failed", fail_code="CONTENT_VIOLATION", fail_message="<no>")
        return transitions.failed(found, failed, now=at)
    if state is State.SUBMITTED:
        return found
    status = Succeeded(task_id=f"task-{key}", state="success", result_urls=("https://h.example/v.mp4",))
    found = transitions.succeeded(found, status, now=at)
    names = {"video": "video.mp4", "poster": "poster.jpg", "sidecar": "generation.json"}
    types = {"video": "video/mp4", "poster": "image/jpeg", "sidecar": "application/json"}
    objects = tuple(
        ArchivedObject.model_validate({
            "kind": kind, "bucket": "b", "name": f"videos/2026/03/10/{key}/{name}", "content_type": types[kind],
            "size_bytes": len(VIDEO), "sha256": hashlib.sha256(f"{key}{kind}".encode()).hexdigest(),
            "codec": "h264", "duration_seconds": 4.0, "width": 1280, "height": 720,
        })
        for kind, name in names.items()
    )  # fmt: skip
    return transitions.archived(found, task=found.task, objects=objects, warnings=(), now=at)


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (1280, 720), "teal").save(file, "JPEG")
    return file.getvalue()


async def put(store: ObjectStore, *generations: Generation) -> None:
    """Writes records with their objects into the bucket."""
    for found in generations:
        await store.put(record_name(found.key), found.model_dump_json().encode())
        for item in found.objects:
            data = {"video": VIDEO, "poster": picture(), "sidecar": b"{}"}[item.kind]
            await store.put(item.name, data, content_type=item.content_type)


class NoPrefect(PrefectLinks):
    """There is no Prefect server."""

    async def _deployment(self) -> str | None:
        return None


@dataclass
class Gallery:
    """A running gallery, and a browser that follows nothing and keeps nothing."""

    archive: VideoArchive
    store: ObjectStore
    client: httpx.AsyncClient

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.client.get(path, **options)

    def token(self, key: str) -> str:
        return self.archive.gateway_token(key)


OpenGallery = Callable[..., AbstractAsyncContextManager[Gallery]]


GUARDED: dict[str, Any] = {
    "gateway_url": "https://videos.example.com",
    "gateway_secret": SecretStr(SECRET),
    "gateway_password": SecretStr(PASSWORD),
}
"""Fields of a block whose gallery others can reach."""
