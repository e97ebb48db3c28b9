"""Faults of downloads, carried out: the videos, and the sample images."""

from __future__ import annotations

from io import BytesIO

from PIL import Image
from starlette.responses import FileResponse
from starlette.types import ASGIApp

from deployments.sandbox.faults import Fault
from deployments.sandbox.misbehavior import PAGES, hang, trickle
from deployments.sandbox.tasks import Task, TaskBoard
from deployments.sandbox.wire import PIECE_BYTES, Exchange, Reply

#: Where a redirect must never be followed to: the metadata service of cloud machines.
PRIVATE_ADDRESS = "http://169.254.169.254/x"
#: How much of a file a truncated transfer holds.
TRUNCATED_PART = 0.6
#: One more than the 10 MB that an image may have.
TOO_BIG_BYTES = 11 * 1024 * 1024
#: Pause between the pieces of an endless body, in seconds: 30 MB a second, so that it reaches a limit soon.
ENDLESS_PAUSE_SECONDS = 0.002
PAGE = "<!doctype html><title>Sign in</title><h1>Sign in to continue</h1>"
STATUSES = {"http_403": 403, "http_404": 404, "http_500": 500, "http_502_html": PAGES["http_502_html"][0]}
#: More than any video has, and more than a caller should take.
HUGE_BYTES = 3 * 1024**3
RANGE_HEADERS = ("range", "if-range")


async def damage_result(exchange: Exchange, app: ASGIApp, fault: Fault, task: Task, board: TaskBoard) -> None:
    """Answers the GET of a video as the fault says."""
    match fault.kind:
        case kind if kind in STATUSES:
            await exchange.answer(STATUSES[kind], f"<h1>{STATUSES[kind]}</h1>")
        case "http_429":
            headers = {} if fault.retry_after is None else {"retry-after": fault.retry_after}
            await exchange.answer(429, "<h1>429</h1>", headers)
        case "reset_before":
            await exchange.reset()
        case "hang":
            await hang(exchange, fault)
        case "slow":
            await trickle(exchange, await exchange.act(app), fault.seconds)
        case "cut":
            await _cut(exchange, app)
        case _:
            await _answer_otherwise(exchange, app, fault, task, board)


async def _answer_otherwise(exchange: Exchange, app: ASGIApp, fault: Fault, task: Task, board: TaskBoard) -> None:
    match fault.kind:
        case "html_200":
            await exchange.answer(200, PAGE)
        case "empty":
            await exchange.answer(200, b"", {"content-type": "video/mp4"})
        case "redirect":
            query = exchange.scope["query_string"].decode("latin-1")
            await exchange.answer(302, headers={"location": f"{exchange.scope['path']}?{query}&hop=1"})
        case "redirect_private":
            await exchange.answer(302, headers={"location": PRIVATE_ADDRESS})
        case "other_duration":
            other = 8 if task.request.input.duration == 4 else 4
            await exchange.pass_on(FileResponse(await board.video_for(task, duration=other)))
        case "other_orientation":
            await exchange.pass_on(FileResponse(await board.video_for(task, turned=True)))
        case kind:
            await _send_otherwise(exchange, await exchange.act(app, without=RANGE_HEADERS), kind)


async def damage_image(exchange: Exchange, app: ASGIApp, fault: Fault) -> None:
    """Answers the GET of a sample image as the fault says."""
    jpeg = {"content-type": "image/jpeg"}
    match fault.kind:
        case kind if kind in STATUSES:
            await exchange.answer(STATUSES[kind], f"<h1>{STATUSES[kind]}</h1>")
        case "html":
            await exchange.answer(200, PAGE)
        case "redirect_private":
            await exchange.answer(302, headers={"location": PRIVATE_ADDRESS})
        case "gif_named_jpg":
            drawn = BytesIO()
            Image.new("RGB", (64, 36), (244, 176, 128)).save(drawn, "GIF")
            await exchange.answer(200, drawn.getvalue(), jpeg)
        case "endless":
            await exchange.begin(200, jpeg)
            await exchange.piece((await exchange.act(app)).body)
            while not await exchange.gone_within(ENDLESS_PAUSE_SECONDS):
                await exchange.piece(bytes(PIECE_BYTES))
        case kind:
            reply = await exchange.act(app)
            body = reply.body[: int(len(reply.body) * TRUNCATED_PART)]
            if kind == "too_big":
                # Decoders ignore what follows the picture: only its size is wrong.
                body = reply.body + bytes(TOO_BIG_BYTES - len(reply.body))
            await exchange.answer(reply.status, body, {"content-type": reply.headers["content-type"]})


async def _cut(exchange: Exchange, app: ASGIApp) -> None:
    reply = await exchange.act(app)
    await exchange.begin(reply.status, reply.headers)
    await exchange.piece(reply.body[: len(reply.body) // 2])
    # A polite close, not a reset: the first half must arrive, so that a resumed download has something to resume.
    await exchange.hang_up()


async def _send_otherwise(exchange: Exchange, reply: Reply, kind: str) -> None:
    """The whole video, whatever range was asked for: too short, of unknown or wrong length, or just whole."""
    headers = {"content-type": reply.headers["content-type"]}
    body = reply.body
    if kind == "truncated_mp4":
        body = body[: int(len(body) * TRUNCATED_PART)]
    if kind == "huge_body":
        await exchange.begin(reply.status, headers | {"content-length": str(HUGE_BYTES)})
        await exchange.piece(body)
        await exchange.hang_up()
        return
    if kind != "no_length":
        await exchange.answer(reply.status, body, headers)
        return
    await exchange.begin(reply.status, headers)
    for start in range(0, len(body), PIECE_BYTES):
        await exchange.piece(body[start : start + PIECE_BYTES])
    await exchange.end()
