"""`sora demo`, `sora up` and `sora sandbox`: everything on this machine."""

import os
from pathlib import Path
from typing import Annotated

import typer

from deployments.cli.console import err

LOCAL_DIR = Path(".local")
"""Set by the root command."""

SPEED = 60.0
"""How many times faster than life the stand-in works: 2 to 4 minutes become 2 to 4 seconds."""


def demo(
    speed: Annotated[float, typer.Option(help="How many times faster than life the stand-in generates.")] = SPEED,
) -> None:
    """Generate three videos with the stand-in of the API, on this machine, without an account.

    Starts the stand-in, MinIO and a Prefect server on loopback, saves the blocks, generates a landscape and a portrait
    video from text and one from an image, archives them, and stops what it started. Costs nothing.
    """
    from deployments.demo import run_demo  # noqa: PLC0415 - keeps --help quick

    raise typer.Exit(run_demo(LOCAL_DIR, speed=speed))


def up(
    speed: Annotated[float, typer.Option(help="How many times faster than life the stand-in generates.")] = SPEED,
    film_height: Annotated[int, typer.Option(help="Short side of its films, in pixels.")] = 720,
) -> None:
    """Start everything, and keep it up until Ctrl-C: stand-in, MinIO, Prefect with its UI, worker, callback receiver.

    It saves the blocks, deploys prefect.yaml and the examples: runs can be started in the UI, on a schedule and by
    events. In another terminal of this folder, `sora generate` and all other commands use this stack.
    """
    from deployments.demo import run_up  # noqa: PLC0415 - keeps --help quick

    run_up(LOCAL_DIR, speed=speed, film_height=film_height)


def sandbox(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 8700,
    speed: Annotated[
        float, typer.Option(help="How many times faster than life it generates: 60 makes minutes seconds.")
    ] = 1.0,
    api_key: Annotated[
        str, typer.Option(envvar="SORA_SANDBOX_API_KEY", help="The API key it takes.", show_default=False)
    ] = "sandbox-key",
    film_height: Annotated[int, typer.Option(help="Short side of its films, in pixels.")] = 720,
    requests_per_minute: Annotated[int, typer.Option(help="More than these answer 429.")] = 10_000,
    max_concurrent_tasks: Annotated[int, typer.Option(help="More than these at once answer 429.")] = 1_000,
) -> None:
    """Start the stand-in of the APIXO Sora-2 API: the documented API, with playable films, for trying and testing.

    It takes the documented requests, with bearer key, limits, errors, states over time, callbacks and result URLs that
    expire. A prompt with the word "forbidden" fails with CONTENT_VIOLATION. Its first page lists all tasks.
    """
    from deployments.sandbox import SandboxSettings, serve  # noqa: PLC0415 - keeps --help quick

    settings = SandboxSettings(
        api_key=api_key,
        speed=speed,
        film_height=film_height,
        requests_per_minute=requests_per_minute,
        max_concurrent_tasks=max_concurrent_tasks,
    )
    err.print(f"The stand-in of the APIXO Sora-2 API runs at http://127.0.0.1:{port} at {speed:g} times life's speed.")
    err.print(f"Sample start image: http://127.0.0.1:{port}/samples/harbour.jpg")
    if "SORA_SANDBOX_API_KEY" not in os.environ:
        err.print(f"API key: {api_key}")
    serve(settings, port=port)
