"""`sora models`: the catalog."""

from typing import Annotated, Final

import typer
from rich.markup import escape

from apixo import catalog
from apixo.catalog import ImageLimits, Value, VideoModel, one_of
from apixo.constants import DEFAULT_MODEL
from deployments.cli.console import err, out, pasteable, print_table
from deployments.connection import SetupError

COLUMNS: Final = ("model", "modes", "images", "seconds", "aspect ratios", "options")


def models(
    model: Annotated[str | None, typer.Argument(help="The model to show in full.", show_default=False)] = None,
) -> None:
    """List the models in the catalog, or show one of them.

    Any other APIXO model can be used as well: its request is sent as it is, with a warning. Your own JSON file, whose
    path is in the environment variable `SORA_MODELS`, adds models to the catalog.
    """
    unusable = catalog.problem()
    if unusable is not None:
        raise SetupError(f"{unusable}. Fix it, or unset the variable.")
    known = catalog.models()
    if model is not None:
        if model not in known:
            raise SetupError(f"The catalog does not have {model!r}. It has {', '.join(known)}.")
        _show(model, known[model])
        return
    print_table(COLUMNS, [row(name, found) for name, found in known.items()])
    err.print(f"The default is {DEFAULT_MODEL}. To show one in full: {pasteable('sora models MODEL')}")


def row(name: str, found: VideoModel) -> tuple[str, ...]:
    """A model as a row of the table: name, modes, images, seconds, aspect ratios, options."""
    most = [mode.images[1] for mode in found.modes.values()]
    ratios = [*found.ratios, *(["others"] if found.other_ratios else [])]
    options = [f"{option}{' (required)' if known.required else ''}" for option, known in found.options.items()]
    options += ["others"] if found.other_options else []
    return (
        name,
        ", ".join(found.modes),
        "any" if None in most else f"up to {max(number or 0 for number in most)}",
        one_of(found.durations) if found.durations else "-",
        ", ".join(ratios) or "-",
        ", ".join(options) or "-",
    )


def _show(name: str, found: VideoModel) -> None:
    least, most = found.prompt_characters
    out.print(f"[bold]{escape(name)}[/]{'  (the default)' if name == DEFAULT_MODEL else ''}")
    for mode, limits in found.modes.items():
        few, many = limits.images
        images = f"{few} or more images" if many is None else _images(few, many)
        only = f", {one_of(limits.durations)} s" if limits.durations else ""
        out.print(f"  mode       {escape(mode)}: {images}{only}")
    if any(limits.images[1] != 0 for limits in found.modes.values()):
        out.print(f"  image      {escape(_image(found))}")
    out.print(f"  prompt     {least:,} to {most:,} characters")
    default = found.seconds(None, next(iter(found.modes)))
    length = f"{one_of(found.durations)} s; {default} s by default" if found.durations else "not supported"
    out.print(f"  duration   {length}")
    ratios = [f"{ratio} ({sent})" if ratio != sent else ratio for ratio, sent in found.ratios.items()]
    ratios += ["others such as 4:3"] if found.other_ratios else []
    out.print(f"  ratios     {escape(', '.join(ratios) or 'not supported')}")
    if found.remove_watermark:
        out.print("  option     remove_watermark: boolean; true by default, --keep-watermark turns it off")
    for option, known in found.options.items():
        kind = one_of(known.allowed) if known.allowed else known.type
        where = f", mode {one_of(known.modes)} only" if known.modes else ""
        out.print(f"  option     {escape(f'{option}: {kind}')}{', required' if known.required else ''}{escape(where)}")
        for value, needs in known.values.items():
            out.print(f"             {escape(f'{value}: {_goes_with(needs)}')}")
    if found.other_options:
        out.print("  option     others are sent as they are")
    out.print(f"  polling    after {found.first_wait_seconds:g} s, then every {found.poll_interval_seconds:g} s")
    out.print(f"  source     {escape(found.source)}")


def _images(least: int, most: int) -> str:
    if least == most:
        return {0: "no image", 1: "one image"}.get(most, f"{most} images")
    return f"{least} to {most} images"


def _image(limits: ImageLimits) -> str:
    """The image limits on one line."""
    least, largest = limits.image_side_pixels
    most = f" and at most {largest:,}" if largest is not None else ""
    sides = f", each side at least {least:,}{most} pixels" if least > 1 or most else ""
    return f"{one_of(limits.image_formats)}, up to {limits.max_image_bytes / 1e6:g} MB{sides}"


def _goes_with(value: Value) -> str:
    """What an option's value requires, on one line."""
    images = [_images(*value.images)] if value.images else []
    modes = [f"mode {one_of(value.modes)}"] if value.modes else []
    ratios = [f"ratio {one_of(value.ratios)}"] if value.ratios else []
    return ", ".join([*images, *modes, *ratios])
