"""The provider as a model: it charges, answers or does not, and counts. And what stands between it and the pipeline."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypeVar

from apixo import (
    ApixoClient,
    BadRequestError,
    Failed,
    NoReplyError,
    NotSentError,
    Processing,
    RateLimitError,
    ServerError,
    Status,
    Succeeded,
    VideoRequest,
)
from apixo.constants import DEFAULT_MODEL
from flows.paid_call import Accepted, PaymentThread
from flows.paid_call.thread import _died
from flows.record.ledger import Ledger
from tests.attack.model.stage import Actor

T = TypeVar("T")


class Answer(StrEnum):
    """What becomes of a paid call."""

    TAKEN = "taken"
    TAKEN_REPLY_LOST = "taken, reply lost"
    NOT_TAKEN_UNCLEAR = "not taken, and a 500"
    REFUSED = "refused with 400"
    BUSY = "refused with 429"
    UNREACHABLE = "never connected"


CHARGED = frozenset({Answer.TAKEN, Answer.TAKEN_REPLY_LOST})


@dataclass
class Task:
    """One accepted generation.

    Attributes:
        key, attempt: for which it was paid; the callback address names them.
        state: where it stands.
        fail_code: why it failed.
    """

    task_id: str
    key: str
    attempt: int
    state: Literal["processing", "success", "failed"] = "processing"
    fail_code: str = ""


@dataclass
class Provider:
    """Everything the other side knows.

    Attributes:
        sending: called with key and attempt number when a paid call has passed its last check.
    """

    sending: Callable[[str, int], None]
    tasks: dict[str, Task] = field(default_factory=dict)
    posts: Counter[tuple[str, int]] = field(default_factory=Counter)
    answers: Counter[Answer] = field(default_factory=Counter)

    def post(self, callback_url: str | None, answer: Answer) -> Task | None:
        """A paid call arrives. Returns the task, if it is charged."""
        key, attempt = about(callback_url)
        self.answers[answer] += 1
        if answer is Answer.UNREACHABLE:
            return None
        self.posts[key, attempt] += 1
        return self.take(key, attempt) if answer in CHARGED else None

    def take(self, key: str, attempt: int) -> Task:
        """Charges."""
        task = Task(f"task_{len(self.tasks) + 1}", key, attempt)
        self.tasks[task.task_id] = task
        return task

    def charged(self, key: str) -> list[Task]:
        """What was paid for this key, in the order of its attempts. Tasks made outside the pipeline have attempt 0."""
        mine = [task for task in self.tasks.values() if task.key == key and task.attempt]
        return sorted(mine, key=lambda task: task.attempt)

    def status(self, task_id: str) -> Status:
        """The answer to a status call."""
        task = self.tasks.get(task_id)
        if task is None:
            raise BadRequestError("APIXO refused the request with 400: 'task not found'.", code=400, task_id=task_id)
        match task.state:
            case "processing":
                return Processing(task_id=task_id, state="processing")
            case "failed":
                return Failed(task_id=task_id, state="failed", fail_code=task.fail_code, fail_message="no")
            case "success":
                return Succeeded(task_id=task_id, state="success", result_urls=(video_url(task_id),))


def video_url(task_id: str) -> str:
    """Where the video of a task lies."""
    return f"https://videos.example.com/{task_id}"


def about(callback_url: str | None) -> tuple[str, int]:
    """Key and attempt number, as `ApixoApi.callback_url_for` writes them."""
    assert callback_url is not None
    key, *number = callback_url.partition("/apixo/")[2].split("/")[:-1]
    return key, int(number[0]) if number else 1


class StagedClient(ApixoClient):
    """The client of one actor. The paid call halts before it looks at its claim, is sent, and is answered."""

    def __init__(self, provider: Provider, actor: Actor) -> None:
        self._provider, self._actor = provider, actor

    async def turn(self) -> None:
        await self._actor.halt("turn")

    async def submit_once(
        self,
        request: VideoRequest,
        *,
        callback_url: str | None = None,
        idempotency_key: str | None = None,
        before_sending: Callable[[], Awaitable[None]] | None = None,
    ) -> str:
        del idempotency_key  # nothing relies on it
        await self._actor.halt("connect")
        if before_sending is not None:
            await before_sending()
        self._provider.sending(*about(callback_url))
        await self._actor.halt("post")
        answer = Answer(self._actor.answer or Answer.TAKEN)
        self._actor.answer = None
        task = self._provider.post(callback_url, answer)
        await self._actor.halt("reply")
        match answer:
            case Answer.REFUSED:
                raise BadRequestError("APIXO refused the request with 400: 'Insufficient credits'.", code=400)
            case Answer.BUSY:
                raise RateLimitError("APIXO refused the request with 429: 'Rate limit'.", code=429)
            case Answer.UNREACHABLE:
                raise NotSentError("No connection. Nothing was sent.")
            case Answer.NOT_TAKEN_UNCLEAR:
                raise ServerError("APIXO answered HTTP 500, code none.", code=500)
        if task is None or answer is Answer.TAKEN_REPLY_LOST:
            raise NoReplyError("The provider did not send a complete reply to the request.")
        return task.task_id

    async def status_once(self, task_id: str, *, model: str = DEFAULT_MODEL) -> Status:
        del model
        await self._actor.halt("status")
        return self._provider.status(task_id)

    async def status(self, task_id: str, *, model: str = DEFAULT_MODEL) -> Status:
        return await self.status_once(task_id, model=model)


class StagedPayments(PaymentThread):
    """Runs paid calls on the stage's loop. All else is the real one's, such as what the end of a run does to them.

    Attributes:
        known: the tasks whose acceptance has come back and was written down.
    """

    def __init__(self, client: StagedClient, ledger: Ledger, actor: Actor) -> None:
        self._client, self._own_ledger, self._actor = client, ledger, actor
        self._under_way: set[Future[Any]] = set()
        self._dead = False
        self.known: list[str] = []

    @property
    def busy(self) -> bool:
        """A paid call is under way."""
        return bool(self._under_way)

    async def die(self) -> None:
        """The thread ends at once, wherever its paid call stands. Whoever waits for it learns that."""
        self._dead = True
        for future in list(self._under_way):
            future.set_exception(_died())
        await self._actor.loses_its_paid_call()

    def _opened(self) -> tuple[ApixoClient, Ledger]:
        return self._client, self._own_ledger

    def _start(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        if self._dead:
            work.close()
            raise _died()
        future: Future[T] = Future()
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        task = asyncio.create_task(work)
        self._actor.paid_calls.append(task)
        task.add_done_callback(lambda _: self._ended(task, future))
        return future

    def _ended(self, task: asyncio.Task[T], future: "Future[T]") -> None:
        if future.done():
            return
        if task.cancelled():
            future.cancel()
        elif (error := task.exception()) is not None:
            future.set_exception(error)
        else:
            made = task.result()
            if isinstance(made, Accepted):
                self.known.append(made.task_id)
            future.set_result(made)
