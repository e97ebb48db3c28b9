"""The sandbox of the APIXO Sora-2 API as a Starlette app: the documented calls, the videos, and a few sample images."""

import asyncio
import contextlib
import hmac
import time
from collections import deque
from collections.abc import AsyncIterator

from pydantic import TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from deployments.sandbox.faults import Fault
from deployments.sandbox.landscapes import FORMATS, sample
from deployments.sandbox.middleware import RECORD_KEY, STATUS_PATH, SUBMIT_PATH, FaultyWire
from deployments.sandbox.pages import front_page
from deployments.sandbox.record import RecordedRequest
from deployments.sandbox.request_body import InvalidInputError, explain, read_request
from deployments.sandbox.tasks import SandboxState
from deployments.sandbox.wire import failure, success

_FAULTS = TypeAdapter(list[Fault])


class RateLimit:
    """Counts calls in a sliding window. A rejected call does not count."""

    def __init__(self, limit: int, window_seconds: float) -> None:
        self._limit, self._window = limit, window_seconds
        self._times: deque[float] = deque()

    def admits(self, now: float) -> bool:
        """Whether one more call at `now` (monotonic seconds) is within the limit. If so, it is counted."""
        while self._times and self._times[0] <= now - self._window:
            self._times.popleft()
        if len(self._times) >= self._limit:
            return False
        self._times.append(now)
        return True


class _Handlers:
    """One method for each route."""

    def __init__(self, state: SandboxState) -> None:
        self._state, self._settings, self._board = state, state.settings, state.tasks
        self._rate = RateLimit(self._settings.requests_per_minute, self._settings.scaled(60))

    async def submit(self, request: Request) -> Response:
        if rejection := self._rejection(request):
            return rejection
        model = request.path_params["model"]
        if not self._settings.offers(model):
            return _failure(404, f"Model not found: {model}")
        try:
            requested = read_request(model, await request.body())
        except InvalidInputError as error:
            return _failure(400, str(error))
        if self._remaining_balance() < self._settings.task_price:
            return _failure(402, "Insufficient balance")
        if self._board.unfinished >= self._settings.max_concurrent_tasks:
            # The documentation does not say how this 429 differs from the other one, so callers must not depend on it.
            return _failure(429, "Rate limit exceeded")
        recorded: RecordedRequest = request.scope[RECORD_KEY]
        task = self._board.create(model, requested, str(request.base_url), numbered=recorded.fault == "number_id")
        recorded.task_id, recorded.charged = task.task_id, True
        return JSONResponse(success({"taskId": task.task_id}))

    async def balance(self, request: Request) -> Response:
        if rejection := self._rejection(request):
            return rejection
        return JSONResponse({"code": 200, "message": "success", "data": round(self._remaining_balance(), 2)})

    def _remaining_balance(self) -> float:
        return self._settings.balance - self._settings.task_price * len(self._board)

    async def status(self, request: Request) -> Response:
        if rejection := self._rejection(request):
            return rejection
        task_id = request.query_params.get("taskId")
        if not task_id:
            return _failure(400, "Invalid parameters: taskId: is required")
        task = self._board.get(task_id)
        if task is None:
            return _failure(400, "task not found")
        if task.model != request.path_params["model"]:
            return _failure(404, "task not found")
        return JSONResponse(success(task.data(self._board.links, str(request.base_url))))

    async def result(self, request: Request) -> Response:
        where = {part: str(request.path_params[part]) for part in ("task_id", "signature", "name")}
        query = {part: request.query_params.get(part, "") for part in ("expires", "sig")}
        if not self._board.links.is_valid(**where, **query):
            return PlainTextResponse("the signature does not match this URL", 403)
        task = self._board.get(where["task_id"])
        if task is None or task.video is None:
            return PlainTextResponse("no such video", 404)
        if task.expired:
            return PlainTextResponse("this URL has expired", 410)
        return FileResponse(task.video, media_type="video/mp4")

    async def sample(self, request: Request) -> Response:
        name, ending = request.path_params["name"], request.path_params["ending"]
        if ending not in FORMATS:
            return PlainTextResponse("samples are .jpg, .png or .webp", 404)
        content = await asyncio.to_thread(sample, name, ending)
        return Response(content, media_type=FORMATS[ending][1])

    async def index(self, request: Request) -> Response:
        return HTMLResponse(front_page(self._settings, self._board, str(request.base_url)))

    async def add_faults(self, request: Request) -> Response:
        try:
            faults = _FAULTS.validate_json(await request.body())
        except ValidationError as error:
            return _failure(400, explain(error))
        self._state.faults.add(*faults)
        return JSONResponse([fault.model_dump(mode="json") for fault in self._state.faults.pending()])

    async def clear_faults(self, _: Request) -> Response:
        self._state.faults.clear()
        return Response(status_code=204)

    async def list_requests(self, _: Request) -> Response:
        return JSONResponse([request.model_dump(mode="json") for request in self._state.record.all()])

    async def list_tasks(self, request: Request) -> Response:
        base_url = str(request.base_url)
        return JSONResponse(
            [
                {
                    **task.data(self._board.links, base_url),
                    "model": task.model,
                    "request": task.request.model_dump(mode="json"),
                    "callbacks": [attempt.model_dump(mode="json") for attempt in task.callbacks],
                }
                for task in self._board.all()
            ]
        )

    def _rejection(self, request: Request) -> Response | None:
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {self._settings.api_key}".encode()):
            return _failure(401, "Invalid or missing API key")
        if not self._rate.admits(time.monotonic()):
            return _failure(429, "Rate limit exceeded")
        return None


def _failure(code: int, message: str) -> Response:
    return JSONResponse(failure(code, message), code)


def create_app(state: SandboxState) -> Starlette:
    """The sandbox as an ASGI app. Faults that cut connections need uvicorn, which `SandboxServer` uses."""
    handlers = _Handlers(state)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await state.tasks.start()
        try:
            yield
        finally:
            await state.tasks.stop()

    return Starlette(
        routes=[
            Route("/", handlers.index),
            Route(SUBMIT_PATH + "{model}", handlers.submit, methods=["POST"]),
            Route(STATUS_PATH + "{model}", handlers.status),
            Route("/api/v1/apikeys/current-balance", handlers.balance),
            Route("/results/{task_id}/{signature}/{name}", handlers.result),
            Route("/samples/{name}.{ending}", handlers.sample),
            Route("/sandbox/faults", handlers.add_faults, methods=["POST"]),
            Route("/sandbox/faults", handlers.clear_faults, methods=["DELETE"]),
            Route("/sandbox/requests", handlers.list_requests),
            Route("/sandbox/tasks", handlers.list_tasks),
        ],
        middleware=[Middleware(FaultyWire, state=state)],
        lifespan=lifespan,
    )
