"""A model of the provider, and the client with which the actors call it."""

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
    InProgress,
    NoReplyError,
    NotSentError,
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
from tests.attack.model.scheduler import Actor

T = TypeVar("T")


class Answer(StrEnum):
    """What becomes of a paid call."""

    ACCEPTED = "accepted"
    ACCEPTED_REPLY_LOST = "accepted, reply lost"
    REPEATED = "answered with the task of an earlier attempt"
    SERVER_ERROR = "not accepted, answered with 500"
    REJECTED = "rejected with 400"
    RATE_LIMITED = "rejected with 429"
    UNREACHABLE = "never connected"


CHARGED = frozenset({Answer.ACCEPTED, Answer.ACCEPTED_REPLY_LOST})


@dataclass
class Task:
    """One accepted generation.

    Attributes:
        key, attempt: what it was paid for, as the callback URL names them.
        state: its current state.
        fail_code: why it failed.
    """

    task_id: str
    key: str
    attempt: int
    state: Literal["processing", "success", "failed"] = "processing"
    fail_code: str = ""


@dataclass
class Provider:
    """Everything that the provider knows.

    Attributes:
        sending: called with the key and the attempt number once a paid call has passed its last check.
    """

    sending: Callable[[str, int], None]
    tasks: dict[str, Task] = field(default_factory=dict)
    posts: Counter[tuple[str, int]] = field(default_factory=Counter)
    answers: Counter[Answer] = field(default_factory=Counter)

    def post(self, callback_url: str | None, answer: Answer) -> Task | None:
        """Receives a paid call. Returns the task, if it is charged."""
        key, attempt = key_and_attempt(callback_url)
        self.answers[answer] += 1
        if answer is Answer.UNREACHABLE:
            return None
        self.posts[key, attempt] += 1
        if answer is Answer.REPEATED:  # charged if there is none
            return next(iter(self.charged(key)), None) or self.accept(key, attempt)
        return self.accept(key, attempt) if answer in CHARGED else None

    def accept(self, key: str, attempt: int) -> Task:
        """Accepts and charges a task."""
        task = Task(f"task_{len(self.tasks) + 1}", key, attempt)
        self.tasks[task.task_id] = task
        return task

    def charged(self, key: str) -> list[Task]:
        """The tasks paid for this key, by attempt. Those made outside the pipeline have attempt 0, and are left out."""
        own = [task for task in self.tasks.values() if task.key == key and task.attempt]
        return sorted(own, key=lambda task: task.attempt)

    def status(self, task_id: str) -> Status:
        """The answer to a status call."""
        task = self.tasks.get(task_id)
        if task is None:
            raise BadRequestError("APIXO refused the request with 400: 'task not found'.", code=400, task_id=task_id)
        match task.state:
            case "processing":
                return InProgress(task_id=task_id, state="processing")
            case "failed":
                return Failed(task_id=task_id, state="failed", fail_code=task.fail_code, fail_message="no")
            case "success":
                return Succeeded(task_id=task_id, state="success", result_urls=(video_url(task_id),))


def video_url(task_id: str) -> str:
    """The URL of the video of a task."""
    return f"https://videos.example.com/{task_id}"


def key_and_attempt(callback_url: str | None) -> tuple[str, int]:
    """The key and the attempt number, parsed from what `ApixoApi.callback_url_for` returns."""
    assert callback_url is not None
    key, *number = callback_url.partition("/apixo/")[2].split("/")[:-1]
    return key, int(number[0]) if number else 1


class SimulatedClient(ApixoClient):
    """The client of one actor. A paid call pauses before its claim is checked, it is sent, and its reply arrives."""

    def __init__(self, provider: Provider, actor: Actor) -> None:
        self._provider, self._actor = provider, actor

    async def wait_for_turn(self) -> None:
        await self._actor.pause_before("turn")

    async def submit_once(
        self,
        request: VideoRequest,
        *,
        callback_url: str | None = None,
        idempotency_key: str | None = None,
        before_sending: Callable[[], Awaitable[None]] | None = None,
    ) -> str:
        del idempotency_key  # nothing relies on it
        await self._actor.pause_before("connect")
        if before_sending is not None:
            await before_sending()
        self._provider.sending(*key_and_attempt(callback_url))
        await self._actor.pause_before("post")
        answer = Answer(self._actor.answer or Answer.ACCEPTED)
        self._actor.answer = None
        task = self._provider.post(callback_url, answer)
        await self._actor.pause_before("reply")
        match answer:
            case Answer.REJECTED:
                raise BadRequestError("APIXO refused the request with 400: 'Insufficient credits'.", code=400)
            case Answer.RATE_LIMITED:
                raise RateLimitError("APIXO refused the request with 429: 'Rate limit'.", code=429)
            case Answer.UNREACHABLE:
                raise NotSentError("No connection. Nothing was sent.")
            case Answer.SERVER_ERROR:
                raise ServerError("APIXO answered HTTP 500, code none.", code=500)
        if task is None or answer is Answer.ACCEPTED_REPLY_LOST:
            raise NoReplyError("The provider did not send a complete reply to the request.")
        return task.task_id

    async def status_once(self, task_id: str, *, model: str = DEFAULT_MODEL) -> Status:
        del model
        await self._actor.pause_before("status")
        self._actor.polled[task_id] = None
        status = self._provider.status(task_id)
        self._actor.polled[task_id] = status.state
        return status

    async def status(self, task_id: str, *, model: str = DEFAULT_MODEL) -> Status:
        return await self.status_once(task_id, model=model)


class SimulatedPayments(PaymentThread):
    """Runs paid calls on the simulation's event loop. The rest is the real code, such as what a canceled run does.

    Attributes:
        known: the tasks whose acceptance was received and recorded.
    """

    def __init__(self, client: SimulatedClient, ledger: Ledger, actor: Actor) -> None:
        self._client, self._own_ledger, self._actor = client, ledger, actor
        self._under_way: set[Future[Any]] = set()
        self._dead = False
        self.known: list[str] = []

    @property
    def busy(self) -> bool:
        """Whether a paid call is in progress."""
        return bool(self._under_way)

    async def die(self) -> None:
        """The thread ends at once, in the middle of a paid call. The run that waits for it gets an error."""
        self._dead = True
        for future in list(self._under_way):
            future.set_exception(_died())
        await self._actor.drop_paid_call()

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
            outcome = task.result()
            if isinstance(outcome, Accepted):
                self.known.append(outcome.task_id)
            future.set_result(outcome)
