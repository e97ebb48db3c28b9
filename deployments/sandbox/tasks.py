"""The generation tasks, from `pending` to video and callback, and the board that runs and keeps all of them."""

import asyncio
import hashlib
import hmac
import json
import logging
import random
import secrets
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

import httpx
from pydantic import BaseModel, Field

from deployments.sandbox.faults import Fault, FaultScript
from deployments.sandbox.image_download import InvalidImageError, fetch_image, network_client
from deployments.sandbox.record import RequestRecord
from deployments.sandbox.rendering import VideoStore, video_size
from deployments.sandbox.request_body import AnyRequest
from deployments.sandbox.settings import (
    CALLBACK_PAUSES_SECONDS,
    FORBIDDEN_WORD,
    GENERATION_SECONDS,
    PENDING_PART,
    SECONDS_A_DAY,
    SandboxSettings,
)
from deployments.sandbox.wire import success

logger = logging.getLogger(__name__)

#: Every task has one video. The second name is for the fault that reports two results.
VIDEO_NAMES = ("video.mp4", "video-2.mp4")
#: The body of a callback with the fault `junk`.
JUNK = b"<!doctype html>\x00 not json {"

State = Literal["pending", "processing", "success", "failed"]


class CallbackAttempt(BaseModel):
    """One POST of a callback, with its outcome."""

    time: float = Field(description="When it was sent, as Unix seconds.")
    status: int | None = Field(description="The receiver's HTTP status; none when there was no answer.")
    error: str | None = Field(None, description="Why there was no answer.")
    seconds: float = Field(0, description="How long it took until then.")


class ResultLinks:
    """Signs result URLs and checks them. The secret lasts as long as the sandbox."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def make(self, base_url: str, task_id: str, expires_at: float, name: str = VIDEO_NAMES[0]) -> str:
        """The URL of a video. `expires_at` in Unix seconds; `base_url`: where the caller reached the sandbox."""
        expires = str(int(expires_at))
        path_part, query_part = self._signatures(task_id, expires, name)
        return f"{base_url.rstrip('/')}/results/{task_id}/{path_part}/{name}?expires={expires}&sig={query_part}"

    def is_valid(self, *, task_id: str, signature: str, name: str, expires: str, sig: str) -> bool:
        """Whether a URL was made here and not changed since."""
        path_part, query_part = self._signatures(task_id, expires, name)
        given = f"{signature}/{sig}".encode()
        return hmac.compare_digest(given, f"{path_part}/{query_part}".encode())

    def _signatures(self, task_id: str, expires: str, name: str) -> tuple[str, str]:
        text = f"{task_id}\n{expires}\n{name}".encode()
        digest = hmac.new(self._secret, text, hashlib.sha256).hexdigest()
        return digest[:16], digest[16:]


@dataclass(slots=True)
class Task:
    """One accepted generation. Changed by the event loop only; safe to read from any thread. Times are Unix seconds."""

    task_id: str
    model: str
    request: AnyRequest
    #: The URL at which the caller of the submit reached the sandbox. The callback's result URL begins with it.
    base_url: str
    #: How long the generation takes, in seconds of the sandbox.
    planned_seconds: float
    created_at: float = field(default_factory=time.time)
    state: State = "pending"
    started_at: float | None = None
    completed_at: float | None = None
    expires_at: float | None = None
    video: Path | None = None
    fail_code: str | None = None
    fail_message: str | None = None
    callbacks: list[CallbackAttempt] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return self.state in ("success", "failed")

    @property
    def expired(self) -> bool:
        """Whether its result URL has expired."""
        return self.expires_at is not None and time.time() >= self.expires_at

    def end(self, fail_code: str | None = None, fail_message: str | None = None) -> None:
        """Ends the task with a video, or with a failure, which is final."""
        if self.state == "failed":
            return
        self.fail_code, self.fail_message = fail_code, fail_message
        self.completed_at = time.time()
        # Last: another thread that sees a final state must also see everything that belongs to it.
        self.state = "failed" if fail_code else "success"

    def data(self, links: ResultLinks, base_url: str) -> dict[str, Any]:
        """The `data` of a status reply. Each field is included only in the states for which it is documented."""
        data: dict[str, Any] = {
            "taskId": self.task_id,
            "state": self.state,
            "createTime": round(self.created_at * 1000),
        }
        if self.state == "success" and self.expires_at is not None:
            urls = [links.make(base_url, self.task_id, self.expires_at)]
            data["resultJson"] = json.dumps({"resultUrls": urls})
        if self.state == "failed":
            data |= {"failCode": self.fail_code, "failMsg": self.fail_message}
        if self.completed_at is not None:
            data["completeTime"] = round(self.completed_at * 1000)
            data["costTime"] = round((self.completed_at - (self.started_at or self.created_at)) * 1000)
        return data


class TaskBoard:
    """Keeps every task of the sandbox, and runs it."""

    #: Both are set by `start`.
    _videos: VideoStore
    _client: httpx.AsyncClient

    def __init__(self, settings: SandboxSettings, faults: FaultScript) -> None:
        self._settings, self._faults = settings, faults
        self._random = random.Random(0)  # each sandbox has the same durations
        self._tasks: dict[str, Task] = {}
        self._lock = threading.Lock()
        #: How many tasks count toward the limit of concurrent tasks.
        self.unfinished = 0
        self._jobs: set[asyncio.Task[None]] = set()
        self.links = ResultLinks()

    async def start(self) -> None:
        """Opens what the tasks need. Called on the event loop that runs them."""
        self._videos = VideoStore(self._settings.data_dir, self._settings.video_height)
        self._client = network_client()

    async def stop(self) -> None:
        """Cancels every unfinished task."""
        for job in list(self._jobs):
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        await self._videos.close()
        await self._client.aclose()

    def all(self) -> list[Task]:
        """Every task, oldest first."""
        with self._lock:
            return list(self._tasks.values())

    def get(self, task_id: str | None) -> Task | None:
        with self._lock:
            return self._tasks.get(task_id or "")

    def __len__(self) -> int:
        return len(self._tasks)

    def create(self, model: str, request: AnyRequest, base_url: str, *, numbered: bool = False) -> Task:
        """Accepts a generation, which the provider would charge now, and starts it. `numbered`: its id is a number."""
        nearest = min(GENERATION_SECONDS, key=lambda seconds: abs(seconds - request.input.seconds))
        shortest, longest = GENERATION_SECONDS[nearest]
        task = Task(
            # Not seeded: a restarted sandbox must not use the same ids again.
            task_id=str(1 + secrets.randbits(48)) if numbered else f"task_{secrets.token_hex(6)}",
            model=model,
            request=request,
            base_url=base_url,
            planned_seconds=self._settings.scaled(self._random.uniform(shortest, longest)),
        )
        with self._lock:
            self._tasks[task.task_id] = task
        self.unfinished += 1
        early = bool(request.active_callback_url) and self._faults.take(
            "callback", prompt=request.input.prompt, model=model, early=True
        )
        if early:
            self._spawn(self._call_back(task, None))
        self._spawn(self._run(task, call_back=not early))
        return task

    async def video_for(
        self, task: Task, *, image: bytes | None = None, duration: int | None = None, turned: bool = False
    ) -> Path:
        """The task's video. For faults, also one with another duration (in seconds) or orientation."""
        requested = task.request.input
        aspect_ratio = requested.ratio
        if turned:
            width, height = video_size(aspect_ratio, 90)
            aspect_ratio = "portrait" if width >= height else "landscape"
        return await self._videos.video(
            prompt=requested.prompt,
            duration=duration or requested.seconds,
            aspect_ratio=aspect_ratio,
            image=image,
            watermark=not requested.remove_watermark,
        )

    async def _run(self, task: Task, *, call_back: bool) -> None:
        try:
            await self._generate(task)
        except InvalidImageError as error:
            task.end("INVALID_IMAGE_URL", str(error))
        except Exception:
            # Not documented, but a task that stays in `processing` forever would hide the error.
            logger.exception("the sandbox could not make the video of %s", task.task_id)
            task.end("INTERNAL_ERROR", "the sandbox failed; its log says why")
        finally:
            self.unfinished -= 1
        if call_back and task.request.active_callback_url:
            fault = self._faults.take("callback", prompt=task.request.input.prompt, model=task.model, early=False)
            await self._call_back(task, fault)

    async def _generate(self, task: Task) -> None:
        clock = asyncio.get_running_loop().time
        due = clock() + task.planned_seconds
        await asyncio.sleep(task.planned_seconds * PENDING_PART)
        if not task.finished:
            task.state, task.started_at = "processing", time.time()
        requested = task.request.input
        images: list[bytes] = []
        if requested.mode != "text-to-video":
            images = [await fetch_image(self._client, url) for url in requested.image_urls or []]
        if FORBIDDEN_WORD in requested.prompt.lower():
            await asyncio.sleep(due - clock())
            task.end("CONTENT_VIOLATION", "the content violates the safety guidelines")
            return
        video = await self.video_for(task, image=images[0] if images else None)
        await asyncio.sleep(due - clock())
        task.video = video
        task.expires_at = time.time() + self._settings.scaled(self._settings.result_days * SECONDS_A_DAY)
        task.end()

    async def _call_back(self, task: Task, fault: Fault | None) -> None:
        """Sends the callback, altered by the fault if there is one. Never raises."""
        kind = fault.kind if fault else None
        if kind == "drop":
            return
        if fault and kind == "late":
            await asyncio.sleep(fault.seconds)
        for _ in range(2 if kind == "twice" else 1):
            for pause_seconds in (0.0, *CALLBACK_PAUSES_SECONDS):
                await asyncio.sleep(self._settings.scaled(pause_seconds))
                payload = json.dumps(success(task.data(self.links, task.base_url))).encode()
                body = JUNK if kind == "junk" else payload
                attempt = await _post(self._client, task.request.active_callback_url or "", body)
                task.callbacks.append(attempt)
                if attempt.status == HTTPStatus.OK:
                    break

    def _spawn(self, job: Coroutine[Any, Any, None]) -> None:
        # The event loop keeps only weak references: without this one, a task could be garbage-collected half-way.
        task = asyncio.get_running_loop().create_task(job)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)


async def _post(client: httpx.AsyncClient, url: str, body: bytes) -> CallbackAttempt:
    now, began = time.time(), time.monotonic()
    try:
        response = await client.post(url, content=body, headers={"Content-Type": "application/json"})
    except (httpx.HTTPError, httpx.InvalidURL, ExceptionGroup) as error:  # the last: a port above 65535
        return CallbackAttempt(time=now, status=None, error=type(error).__name__, seconds=time.monotonic() - began)
    return CallbackAttempt(time=now, status=response.status_code, seconds=time.monotonic() - began)


class SandboxState:
    """The settings of a sandbox, the requests that it received, its scripted faults, and its tasks."""

    def __init__(self, settings: SandboxSettings | None = None) -> None:
        self.settings = settings or SandboxSettings()
        self.record = RequestRecord()
        self.faults = FaultScript()
        self.tasks = TaskBoard(self.settings, self.faults)
