"""Performs the faults of downloads: videos and sample images. Those that send nothing are in `api_faults`."""

import asyncio
from io import BytesIO

import av
from PIL import Image
from starlette.responses import FileResponse
from starlette.types import ASGIApp

from deployments.sandbox.api_faults import trickle
from deployments.sandbox.faults import Fault
from deployments.sandbox.tasks import Task, TaskBoard
from deployments.sandbox.wire import CHUNK_BYTES, Exchange

#: How much of a file a truncated transfer contains.
TRUNCATED_PART = 0.6
#: 1 MB more than an image may have.
TOO_BIG_BYTES = 11 * 1024 * 1024
#: Pause between the pieces of an endless body, in seconds: 30 MB per second, so that it soon reaches a limit.
ENDLESS_PAUSE_SECONDS = 0.002
SIGN_IN_PAGE = "<!doctype html><title>Sign in</title><h1>Sign in to continue</h1>"
#: The Content-Length of `huge_body`: more than any video has, and more than a caller should accept.
ANNOUNCED_BYTES = 3 * 1024**3
#: A GIF contains every third frame of the video. Each side has at most this many pixels.
GIF_STEP, GIF_PIXELS = 3, 320


async def damage_result(exchange: Exchange, app: ASGIApp, fault: Fault, task: Task, board: TaskBoard) -> None:
    """Answers the GET of a video as the fault says."""
    match fault.kind:
        case "slow":
            await trickle(exchange, await exchange.run_app(app), fault.seconds)
        case "cut":
            reply = await exchange.run_app(app)
            # A clean close, not a reset: the first half must arrive, so that the download can be resumed.
            await exchange.break_off(reply.status, reply.headers, reply.body[: len(reply.body) // 2])
        case "html_200":
            await exchange.answer(200, SIGN_IN_PAGE)
        case "empty":
            await exchange.answer(200, b"", {"content-type": "video/mp4"})
        case "gif":
            made = await asyncio.to_thread(animated_gif, (await exchange.run_app(app)).body)
            await exchange.answer(200, made, {"content-type": "video/mp4"})
        case "other_duration":
            other = 8 if task.request.input.seconds == 4 else 4
            await exchange.pass_on(FileResponse(await board.video_for(task, duration=other)))
        case "other_orientation":
            await exchange.pass_on(FileResponse(await board.video_for(task, turned=True)))
        case kind:
            await _send_whole_video(exchange, app, kind)


def animated_gif(video: bytes) -> bytes:
    """A video as an animated GIF of the same length."""
    with av.open(BytesIO(video), "r") as container:
        rate = float(container.streams.video[0].average_rate or 1)
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    frames = [Image.fromarray(picture) for picture in pictures[::GIF_STEP]]
    for frame in frames:
        frame.thumbnail((GIF_PIXELS, GIF_PIXELS))
    written = BytesIO()
    pause_milliseconds = round(1000 * GIF_STEP / rate)
    frames[0].save(written, "GIF", save_all=True, append_images=frames[1:], duration=pause_milliseconds, loop=0)
    return written.getvalue()


async def damage_image(exchange: Exchange, app: ASGIApp, fault: Fault) -> None:
    """Answers the GET of a sample image as the fault says."""
    reply = await exchange.run_app(app)
    match fault.kind:
        case "html":
            await exchange.answer(200, SIGN_IN_PAGE)
        case "gif_named_jpg":
            drawn = BytesIO()
            Image.new("RGB", (64, 36), (244, 176, 128)).save(drawn, "GIF")
            await exchange.answer(200, drawn.getvalue(), {"content-type": "image/jpeg"})
        case "endless":
            await exchange.begin(200, {"content-type": "image/jpeg"})
            await exchange.send_chunk(reply.body)
            while not await exchange.disconnected_within(ENDLESS_PAUSE_SECONDS):
                await exchange.send_chunk(bytes(CHUNK_BYTES))
        case "too_big":
            # Decoders ignore bytes after the image: only its size is wrong.
            padded = reply.body + bytes(TOO_BIG_BYTES - len(reply.body))
            await exchange.answer(reply.status, padded, {"content-type": reply.headers["content-type"]})
        case _:
            part = reply.body[: int(len(reply.body) * TRUNCATED_PART)]
            await exchange.answer(reply.status, part, {"content-type": reply.headers["content-type"]})


async def _send_whole_video(exchange: Exchange, app: ASGIApp, kind: str) -> None:
    """Sends the whole video whatever range was requested: truncated, with a wrong or no length, or unchanged."""
    reply = await exchange.run_app(app, without=("range", "if-range"))
    headers, body = {"content-type": reply.headers["content-type"]}, reply.body
    match kind:
        case "truncated_mp4":
            await exchange.answer(reply.status, body[: int(len(body) * TRUNCATED_PART)], headers)
        case "huge_body":
            await exchange.break_off(reply.status, headers | {"content-length": str(ANNOUNCED_BYTES)}, body)
        case "labeled":
            await exchange.answer(reply.status, body, headers | {"content-encoding": "aws-chunked"})
        case "framed":
            await exchange.answer(reply.status, b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body), headers)
        case "long_length":
            await exchange.break_off(reply.status, headers | {"content-length": str(len(body) + 1)}, body)
        case "no_length":
            await exchange.begin(reply.status, headers)
            await exchange.send_chunk(body)
            await exchange.end()
        case _:
            await exchange.answer(reply.status, body, headers)
