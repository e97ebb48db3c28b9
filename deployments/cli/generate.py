"""`sora generate`."""

import asyncio
import json
import os
import secrets
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.markup import escape

from apixo import VideoRequest
from apixo.constants import DEFAULT_MODEL
from apixo.urls import normalize_url
from blocks import ApixoApi, VideoArchive
from deployments.cli.console import ApiName, ArchiveName, Verbose, err, out, say, warn
from deployments.cli.display import StepDisplay, print_generations, shown
from flows.checks import check_before_paying
from flows.generate_video import generate_video
from flows.media.own_images import check_as_provider, read_own_image, upload
from flows.record.advice import duplicate_error, duplicate_sentence, show_command, unknown_model
from flows.record.generation import Generation
from flows.record.indexes import is_same_video
from flows.record.keys import check_key
from flows.record.run_keys import slug
from flows.resources import Resources, command_options, load_block

PLACE_OF_A_FILE: Final = "s3://files/image"
"""A placeholder for a file while the rest of a request is validated."""


def generate(
    prompt: Annotated[
        str, typer.Argument(help="What the video shows: camera, lighting, mood, action, in up to 10,000 characters.")
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="The model. `sora models` lists what each one supports.")
    ] = DEFAULT_MODEL,
    duration: Annotated[
        int | None,
        typer.Option(
            "--duration",
            "-d",
            help="Seconds; with sora-2 4, 8 or 12. Start with a short one. Default: the model's.",
        ),
    ] = None,
    portrait: Annotated[bool, typer.Option("--portrait", help="Portrait, for phones. Default: landscape.")] = False,
    aspect_ratio: Annotated[
        str | None, typer.Option(help="Another ratio that the model supports, such as 1:1, instead of --portrait.")
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            "--image",
            "-i",
            help="A start image (JPG, PNG, WebP, up to 10 MB): a file, s3://bucket/object or a public URL. Repeatable.",
        ),
    ] = None,
    fit_images: Annotated[
        bool, typer.Option("--fit-images", help="Rotate image files upright, and shrink them to the model's limits.")
    ] = False,
    key: Annotated[
        str | None,
        typer.Option(
            "--key",
            "-k",
            help="Permanent name of this video: the same key is never paid for twice. Default: generated.",
        ),
    ] = None,
    mode: Annotated[str | None, typer.Option(help="The model's mode. Default: derived from the images.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", help="A further option of the model, such as sound=true. Repeatable."),
    ] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="A label to find the video by. Repeatable.")] = None,
    fallback_model: Annotated[
        list[str] | None,
        typer.Option(help="Tried if APIXO says that the model does not exist or is unavailable. Repeatable."),
    ] = None,
    keep_watermark: Annotated[bool, typer.Option("--keep-watermark", help="Keep the watermark.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="--no-wait exits after the submission.")] = True,
    refuse_duplicates: Annotated[
        bool,
        typer.Option(
            "--refuse-duplicates",
            help="Fail, and pay nothing, if the same request was submitted under another key. Default: only warn.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check the request, the images and the setup; show what it costs; pay nothing."),
    ] = False,
    api: ApiName = "default",
    archive: ArchiveName = "default",
    verbose: Verbose = False,
) -> None:
    """Generate one video and archive it.

    If anything goes wrong, run it again with the same `--key`: it continues where it stopped and never pays twice.

    Example: `sora generate "Aerial view of a lighthouse at dusk, orbiting shot, soft light" -d 4 -k lighthouse-01`
    """
    if portrait and aspect_ratio is not None:
        raise typer.BadParameter("give either --portrait or --aspect-ratio, not both")
    request = VideoRequest.model_validate(
        {
            "prompt": prompt,
            "model": model,
            "duration": duration,
            "aspect_ratio": "portrait" if portrait else aspect_ratio,
            "mode": mode,
            "options": dict(map(_option, option or [])),
            "tags": tag or [],
            "fallback_models": fallback_model or [],
            "image_urls": [PLACE_OF_A_FILE if is_file(given) else given for given in image or []],
            "remove_watermark": not keep_watermark,
        }
    )
    unknown = unknown_model(request)
    if unknown is not None:
        warn(unknown)
    if any(map(is_file, image or [])):
        request = asyncio.run(_with_files(request, image or [], fit=fit_images, archive=archive))
    # An empty key is not a missing key: `--key "$NAME"` with NAME unset would pay for another video in every run.
    key = made_up_key(prompt) if key is None else check_key(key)
    if dry_run:
        asyncio.run(_dry_run(request, key, refuse_duplicates=refuse_duplicates, api=api, archive=archive))
        return
    run_and_show(request, key, wait=wait, refuse_duplicates=refuse_duplicates, api=api, archive=archive)


def run_and_show(
    request: VideoRequest, key: str, *, wait: bool, api: str, archive: str, refuse_duplicates: bool = False
) -> None:
    """Runs the flow in this process, with a live view, and prints the result."""
    err.print(f"Key [bold]{escape(key)}[/]: the same key continues this video and is never paid for twice.")
    remedy = show_command(key, command_options(api, archive)).strip("`")
    stopped = f"run the same command with --key {key} to continue, or see what is known: {remedy}"
    with shown(StepDisplay(err), stopped=stopped):
        running = generate_video(
            request, key=key, wait=wait, refuse_duplicates=refuse_duplicates, api=api, archive=archive
        )
        generation: Generation = asyncio.run(running)
    print_generations([generation])
    if generation.state != "archived":
        task = escape(generation.task_id or "unknown")
        err.print(f"Submitted as task {task}. To wait for it: run the same command with --key {escape(key)}")
    else:
        command = show_command(key, command_options(api, archive), " --link").strip("`")
        err.print(f"To watch it: {escape(command)}")


def made_up_key(prompt: str) -> str:
    """A readable key: the prompt's first words, the time, and four random hex digits."""
    return f"{slug(prompt, most=32)}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def is_file(image: str) -> bool:
    """Whether an image is given as a file, not as a URL (with or without a scheme)."""
    return "://" not in image and (os.path.isfile(image) or not normalize_url(image).startswith("http"))  # noqa: PTH113 - a data: URL is too long a name for Path.is_file


async def _with_files(request: VideoRequest, images: list[str], *, fit: bool, archive: str) -> VideoRequest:
    """The request with its files uploaded."""
    places = []
    max_bytes = request.image_limits.max_image_bytes
    async with aclosing((await load_block(VideoArchive, archive)).store()) as store:
        for given in images:
            if not is_file(given):
                places.append(given)
                continue
            found = read_own_image(Path(given), shown=given[:200], max_bytes=max_bytes, fit=fit)
            await upload(found, store)
            places.append(f"s3://{store.bucket}/{found.object_name}")
            if found.sideways:
                warn(f"{given} is stored sideways; APIXO may use it that way. --fit-images rotates it.")
    return VideoRequest.model_validate({**request.model_dump(), "image_urls": places})


def _option(text: str) -> tuple[str, Any]:
    """The name and value of an option such as `sound=true`. The value is parsed as JSON if it is valid JSON."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise typer.BadParameter("give --option as NAME=VALUE, such as sound=true")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


async def _dry_run(request: VideoRequest, key: str, *, refuse_duplicates: bool, api: str, archive: str) -> None:
    block = await load_block(ApixoApi, api)
    async with Resources(block, await load_block(VideoArchive, archive)) as resources:
        for url in request.image_urls:
            image = await check_as_provider(resources.web, url, resources.image_url_for, limits=request.image_limits)
            out.print(f"image     {image.format}, {image.width} x {image.height}, {image.size_bytes:,} bytes")
        findings = await check_before_paying(resources)
        say(f"api       {escape(block.base_url)} answers and accepts the key")
        for finding in findings:
            mark = "" if finding.outcome == "ok" else "[yellow]![/] "
            say(f"{finding.name.removesuffix(' route'):9} {mark}{escape(finding.detail)}")
        entry = await resources.ledger.read(key)
        first = None if entry else await resources.ledger.duplicate_of(request, key, note=False)
    out.print(f"archive   bucket {resources.store.bucket} exists, honors conditional writes, accepts large files")
    out.print(f"key       {escape(key)}")
    out.print(f"request   {escape(request.summary)}, {len(request.prompt):,} characters")
    if entry is not None:
        same = "the same request" if is_same_video(entry.generation.request, request) else "[red]a different request[/]"
        out.print(f"ledger    this key is {entry.generation.state}, for {same}")
    if first is not None:
        if refuse_duplicates:
            raise duplicate_error(key, first, command_options(api, archive))
        out.print(f"duplicate {escape(duplicate_sentence(key, first))}")
    price = block.price(request.model, request.seconds)
    field = "price_per_second" if request.model == DEFAULT_MODEL else f"price of {request.model} in prices"
    costs = f"{price} {block.currency or ''}".rstrip() if price is not None else f"unknown: the block has no {field}"
    out.print(f"price     {costs}")
    out.print("No video was submitted and nothing was paid.")
