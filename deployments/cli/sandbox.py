"""`sora sandbox`: runs only the sandbox."""

import os
from typing import Annotated

import typer
from rich.markup import escape

from deployments.cli.console import err
from deployments.local.processes import LOOPBACK, SANDBOX_PORT
from deployments.sandbox import SandboxSettings, serve
from deployments.web_server import listen


def sandbox(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = SANDBOX_PORT,
    speed: Annotated[
        float, typer.Option(help="How many times faster than real time it generates: 60 turns minutes into seconds.")
    ] = 1.0,
    api_key: Annotated[
        str, typer.Option(envvar="SORA_SANDBOX_API_KEY", help="The API key that it accepts.", show_default=False)
    ] = "sandbox-key",
    video_height: Annotated[int, typer.Option(help="Short side of its videos, in pixels.")] = 720,
    requests_per_minute: Annotated[int, typer.Option(help="Requests beyond this get a 429.")] = 10_000,
    max_concurrent_tasks: Annotated[int, typer.Option(help="Tasks beyond this get a 429.")] = 1_000,
    balance: Annotated[
        float,
        typer.Option(
            help="The account's balance in USD. Each task costs 1; a task that costs more than is left gets a 402."
        ),
    ] = 10_000,
    result_days: Annotated[
        float,
        typer.Option(help="Days for which a result can be fetched, at its speed. APIXO says 15, on older pages 1."),
    ] = 15,
    gone_model: Annotated[
        list[str] | None, typer.Option(help="A model that gets a 404, like one that is no longer offered.")
    ] = None,
) -> None:
    """Start the sandbox, a fake of the APIXO Sora-2 API for trying and testing, with playable videos.

    It accepts the documented requests of every model in the catalog, with bearer key, limits, errors, states over time,
    callbacks and result URLs that expire. A prompt with the word "forbidden" fails with CONTENT_VIOLATION. Its front
    page lists all tasks.
    """
    settings = SandboxSettings(
        api_key=api_key,
        speed=speed,
        video_height=video_height,
        requests_per_minute=requests_per_minute,
        max_concurrent_tasks=max_concurrent_tasks,
        balance=balance,
        result_days=result_days,
        gone_models=tuple(gone_model or ()),
    )
    listener, url = listen(LOOPBACK, port, "The sandbox")
    err.print(f"The sandbox of the APIXO Sora-2 API runs at {url}, {speed:g} times faster than real time.")
    err.print(f"Sample start image: {url}/samples/harbor.jpg")
    if "SORA_SANDBOX_API_KEY" not in os.environ:
        err.print(f"API key: {escape(api_key)}")
    serve(settings, listener)
