"""Creates archived videos without a run, and opens a gallery with an HTTP client."""

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


def make_generation(
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
    """Creates a record as the pipeline would, in the given state."""
    request = VideoRequest(prompt=prompt, **fields)
    owner = Owner(host="h", pid=1, flow_run_id=run)
    generation = transitions.claim(
        None, key=key, request=request, owner=owner, lease_seconds=1, now=at, price=price, batch=batch,
        currency=None if price is None else "USD",
    )  # fmt: skip
    if state is State.CLAIMED:
        return generation
    if state is State.UNCONFIRMED:
        return generation.model_copy(
            update={"state": state, "attempts": (generation.attempt.model_copy(update={"state": state}),)}
        )
    generation = transitions.submitted(generation, attempt_number=1, task_id=f"task-{key}", now=at)
    if state is State.FAILED:
        failed = Failed(task_id=f"task-{key}", state="failed", fail_code="CONTENT_VIOLATION", fail_message="<no>")
        return transitions.failed(generation, failed, now=at)
    if state is State.SUBMITTED:
        return generation
    status = Succeeded(task_id=f"task-{key}", state="success", result_urls=("https://h.example/v.mp4",))
    generation = transitions.succeeded(generation, status, now=at)
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
    return transitions.archived(generation, task=generation.task, objects=objects, warnings=(), now=at)


def make_poster() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (1280, 720), "teal").save(file, "JPEG")
    return file.getvalue()


async def put_generations(store: ObjectStore, *generations: Generation) -> None:
    """Writes records and their objects into the bucket."""
    for generation in generations:
        await store.put(record_name(generation.key), generation.model_dump_json().encode())
        for item in generation.objects:
            data = {"video": VIDEO, "poster": make_poster(), "sidecar": b"{}"}[item.kind]
            await store.put(item.name, data, content_type=item.content_type)


class NoPrefect(PrefectLinks):
    """Links without a Prefect server."""

    async def _deployment(self) -> str | None:
        return None


@dataclass
class Gallery:
    """A running gallery, and a client that follows no redirects and keeps no cookies."""

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
"""Fields of a block whose gallery can be reached from other machines."""
