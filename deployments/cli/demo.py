"""`sora demo` and `sora up`: everything on this machine.

Both start their own Prefect server, so modules that import Prefect are imported only after that.
"""

import asyncio
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.markup import escape

from apixo import VideoRequest
from apixo.constants import DEFAULT_MODEL
from deployments.cli.console import err, pasteable, say, wrong
from deployments.connection import flush, set_environment
from deployments.local.processes import GALLERY_PORT, LOOPBACK, RECEIVER_PORT
from deployments.local.services import client_services, default_services
from deployments.local.stack import LocalStack
from deployments.local.stack_info import LOCAL_DIR, Credentials

if TYPE_CHECKING:
    from flows.record.generation import Generation


SPEED: Final = 60.0
"""How many times faster than real time the sandbox runs: 2 to 4 minutes become 2 to 4 seconds."""


def demo(
    context: typer.Context,
    speed: Annotated[float, typer.Option(help="How many times faster than real time the sandbox generates.")] = SPEED,
) -> None:
    """Generate three videos with the sandbox, a fake of the API on this machine: no account, no cost.

    Starts the sandbox, MinIO and a Prefect server on loopback, saves the blocks, generates a landscape video from text
    and one from an image with sora-2, and a portrait one with another model, archives them, and stops what it started.
    """
    began = time.monotonic()
    with _stack(context.obj.local_dir, speed=speed) as stack:
        set_environment(stack.environment)
        try:
            failures = asyncio.run(_generate_all(stack, speed=speed))
        finally:
            flush()
        took = time.monotonic() - began
    if failures:
        for key, error in failures.items():
            wrong(f"{key}: {str(error) or type(error).__name__}")
        raise typer.Exit(1)
    err.print(f"Three videos were archived and verified in {took:.0f} s. Everything has been stopped.")
    err.print(
        "To watch them: `sora up`, then `sora show KEY --link` (or --save FILE) in another terminal"
        f"{_elsewhere(context.obj.local_dir)}.",
        soft_wrap=True,
    )


def up(
    context: typer.Context,
    speed: Annotated[float, typer.Option(help="How many times faster than real time the sandbox generates.")] = SPEED,
    video_height: Annotated[int, typer.Option(help="Short side of its videos, in pixels.")] = 720,
) -> None:
    """Run everything until Ctrl-C: sandbox, MinIO, Prefect with its UI, worker, receiver, gallery.

    Saves the blocks and deploys prefect.yaml and the examples: runs can be started in the UI, on a schedule and by
    events. In another terminal in this folder, `sora generate` and all other commands use this stack.
    """
    local_dir: Path = context.obj.local_dir
    with _stack(local_dir, speed=speed, video_height=video_height) as stack:
        # The blocks contain these URLs before the servers listen, so another stack must not take the ports meanwhile.
        port, gallery_port = stack.reserve(RECEIVER_PORT), stack.reserve(GALLERY_PORT)
        stack_settings = {
            "APIXO_CALLBACK_URL": f"http://{LOOPBACK}:{port}",
            "APIXO_CALLBACK_SECRET": _secret(local_dir, "callback"),
            "MINIO_GATEWAY_URL": f"http://{LOOPBACK}:{gallery_port}",
            "MINIO_GATEWAY_SECRET": _secret(local_dir, "gallery"),
        }
        set_environment(stack.environment)
        asyncio.run(_save_blocks({**stack.environment, **timing(speed), **stack_settings}))
        err.print("Deploying prefect.yaml and the examples.", style="dim")
        from deployments.setup.deploy import EXAMPLES, MAIN, deploy  # noqa: PLC0415 - imports Prefect

        asyncio.run(deploy(MAIN, EXAMPLES))
        flush()
        stack.add(client_services(local_dir, receiver_port=port, gallery_port=gallery_port))
        _print_urls(stack, local_dir)
        stack.wait()


def timing(speed: float) -> dict[str, str]:
    """The API block's timing for a sandbox of this speed: APIXO's recommendations, divided by the speed."""
    return {
        "APIXO_INITIAL_WAIT_SECONDS": f"{180 / speed:.3f}",
        "APIXO_POLL_INTERVAL_SECONDS": f"{max(10 / speed, 0.1):.3f}",
        "APIXO_DEADLINE_SECONDS": f"{max(1800 / speed, 60):.3f}",
        "APIXO_RETRY_DELAY_SECONDS": f"{max(2 / speed, 0.2):.3f}",
        "APIXO_SUBMIT_TIMEOUT_SECONDS": "10",
    }


def demo_requests(sandbox_url: str, run: str) -> dict[str, VideoRequest]:
    """Three requests by key: from text and from an image with sora-2, and a portrait one with another model."""
    return {
        f"demo-{run}-dunes": VideoRequest(
            prompt=(
                "A red kite climbs over rippling desert dunes at golden hour. Slow dolly in from behind, warm low "
                "light, long shadows, sand drifting off the crest; calm and dreamlike."
            ),
            duration=4,
        ),
        f"demo-{run}-lantern": VideoRequest(
            prompt=(
                "A paper lantern rises from a narrow rain-wet alley at blue hour. Handheld camera tilts up with it, "
                "soft diffused light on the walls, tender and hopeful; the shot ends on a sky full of lanterns."
            ),
            model="kling-2-6",
            duration=5,
            aspect_ratio="portrait",
            options={"sound": True},
            tags=["demo"],
        ),
        f"demo-{run}-harbor": VideoRequest(
            prompt=(
                "The harbor wakes: gentle waves catch the backlight, boats sway, the camera orbits slowly and zooms "
                "from wide to close; quiet, epic morning mood."
            ),
            duration=8,
            image_urls=[f"{sandbox_url}/samples/harbor.jpg"],
        ),
    }


def _secret(local_dir: Path, name: str) -> str:
    return Credentials.load_or_create(local_dir.resolve() / f"{name}-credentials.json").secret_key


def _print_urls(stack: LocalStack, local_dir: Path) -> None:
    environment, ui = stack.environment, stack.servers["prefect"].url
    console, user = stack.servers["object store"].console_url or "none", environment["MINIO_ACCESS_KEY"]
    password = escape(str(local_dir / "minio-credentials.json"))
    say(f"Prefect UI      {ui}")
    say(f"Gallery         {stack.servers['gallery'].url}")
    say(f"MinIO console   {console}  (user {user}, password in {password})")
    say(f"Sandbox         {stack.servers['sandbox'].url}")
    say(f"Callbacks       {stack.servers['receiver'].url}")
    say("\nStart runs:")
    say(f"  one video     {ui}/deployments  →  generate-video  →  Run  →  Custom run")
    say(f"  a calendar    {ui}/deployments  →  example-batch  →  Run  →  Quick run")
    say(f"  on a schedule {ui}/deployments  →  example-batch  →  turn on its schedule")
    say("  by an event   in another terminal:")
    emit = pasteable("prefect event emit sora.video.requested")
    say(
        f"""    PREFECT_API_URL={environment["PREFECT_API_URL"]} {emit} \\
      --resource-id my-shop.product.42 \\
      --payload '{{"key": "product-42", "request": {{"prompt": "A fox in fresh snow, tracking shot, dawn light"}}}}'"""
    )
    say(f"  by command    in another terminal{_elsewhere(local_dir)}:")
    say(pasteable('    sora generate "A fox in fresh snow, tracking shot, dawn light"'))
    say(pasteable("    sora list"))
    say("\nCtrl-C stops everything.")


def _elsewhere(local_dir: Path) -> str:
    """What another terminal needs to find a stack that is not in the default folder."""
    where = shlex.quote(str(local_dir.absolute()))
    return "" if local_dir == LOCAL_DIR else f", after `export SORA_LOCAL_DIR={escape(where)}`"


def _stack(local_dir: Path, *, speed: float, video_height: int = 720) -> LocalStack:
    def dimmed(line: str) -> None:
        err.print(escape(line), style="dim", soft_wrap=True)

    options = ["--speed", str(speed), "--video-height", str(video_height)]
    services = default_services(local_dir, say=dimmed, sandbox_options=options)
    return LocalStack(local_dir, services=services, say=dimmed)


async def _generate_all(stack: LocalStack, *, speed: float) -> dict[str, BaseException]:
    from deployments.cli.display import StepDisplay, print_generations  # noqa: PLC0415 - after the server was chosen
    from flows.generate_video import generate_video  # noqa: PLC0415
    from flows.signals.progress import listen  # noqa: PLC0415

    await _save_blocks({**stack.environment, **timing(speed)})
    requests = demo_requests(stack.servers["sandbox"].url, time.strftime("%Y%m%d-%H%M%S"))
    with StepDisplay(err) as display:
        listen(display)
        results = await asyncio.gather(
            *(generate_video(request, key=key) for key, request in requests.items()), return_exceptions=True
        )
    made: list[Generation] = []
    failures: dict[str, BaseException] = {}
    for key, result in zip(requests, results, strict=True):
        if isinstance(result, BaseException):
            failures[key] = result
        elif result.state != "archived":
            failures[key] = RuntimeError(f"ended as {result.state}, not archived")
        else:
            made.append(result)
    print_generations(made)
    others = {item.key: item.attempt.model for item in made if item.attempt.model != DEFAULT_MODEL}
    for key, model in others.items():
        err.print(f"{escape(key)} was made with {escape(model)}; sora models lists what each model supports.")
    return failures


async def _save_blocks(environ: dict[str, str]) -> None:
    from blocks import VideoArchive  # noqa: PLC0415 - imports Prefect
    from deployments.setup.blocks import make_bucket, save_blocks  # noqa: PLC0415
    from flows.resources import load_block  # noqa: PLC0415

    # Only this stack's settings: a real key in the caller's environment must not reach the sandbox.
    # The URLs and secrets of an earlier stack's receiver and gallery are reset: those servers are gone.
    stack_settings = ("callback_url", "callback_secret", "gateway_url", "gateway_secret", "gateway_password")
    await save_blocks(environ, reset=stack_settings)
    await make_bucket(await load_block(VideoArchive, "default"), known=True)
