"""Reports the end of a task to its receiver: the envelope of the status, POSTed until a 200, four times at most."""

import asyncio
import time
from collections.abc import Callable
from http import HTTPStatus

import httpx
from pydantic import BaseModel, Field

from deployments.sandbox.envelopes import Json
from deployments.sandbox.faults import Fault
from deployments.sandbox.settings import CALLBACK_PAUSES_SECONDS, SandboxSettings


class CallbackAttempt(BaseModel):
    """One POST of a callback and what came of it."""

    time: float = Field(description="When it was sent, as Unix seconds.")
    status: int | None = Field(description="The receiver's HTTP status; none when there was no answer.")
    error: str | None = Field(None, description="Why there was no answer.")
    seconds: float = Field(0, description="How long it took until then.")


async def deliver(
    client: httpx.AsyncClient,
    url: str,
    envelope: Callable[[], Json],
    *,
    settings: SandboxSettings,
    fault: Fault | None,
    attempts: list[CallbackAttempt],
) -> None:
    """Sends one callback as the fault, if any, bends it. Each attempt is added to `attempts`. Never raises."""
    kind = fault.kind if fault else None
    if kind == "drop":
        return
    if fault and kind == "late":
        await asyncio.sleep(fault.seconds)
    for _ in range(2 if kind == "twice" else 1):
        for pause_seconds in (0.0, *CALLBACK_PAUSES_SECONDS):
            await asyncio.sleep(settings.scaled(pause_seconds))
            attempt = await _post(client, url, b"<!doctype html>\x00 not json {" if kind == "junk" else envelope())
            attempts.append(attempt)
            if attempt.status == HTTPStatus.OK:
                break


async def _post(client: httpx.AsyncClient, url: str, body: Json | bytes) -> CallbackAttempt:
    now, began = time.time(), time.monotonic()
    try:
        if isinstance(body, bytes):
            response = await client.post(url, content=body, headers={"Content-Type": "application/json"})
        else:
            response = await client.post(url, json=body)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return CallbackAttempt(time=now, status=None, error=type(error).__name__, seconds=time.monotonic() - began)
    return CallbackAttempt(time=now, status=response.status_code, seconds=time.monotonic() - began)
