"""What a downloaded video is called, and the command that makes another like it. Pure."""

import json
import re
import shlex
import unicodedata

from apixo.constants import DEFAULT_MODEL
from flows.record.generation import ArchivedObject, Generation

LONGEST_STEM = 100


def download_name(found: Generation, item: ArchivedObject) -> str:
    """The key, and the first words of the prompt: `kite-01-a-red-kite-over-dunes.mp4`."""
    stem, _, extension = item.name.rpartition("/")[2].rpartition(".")
    plain = unicodedata.normalize("NFKD", found.request.prompt[:200]).encode("ascii", "ignore").decode().lower()
    words = re.findall("[a-z0-9]+", plain)[:6]
    name = "-".join([found.key, *words])[:LONGEST_STEM].rstrip("-._")
    return f"{name}{stem.removeprefix('video')}.{extension}"


def generate_command(found: Generation, options: str) -> str:
    """The `sora generate` command for the same request. It names no key, so that it makes another video."""
    request = found.request
    words = ["sora", "generate"]
    if request.model != DEFAULT_MODEL:
        words += ["--model", request.model]
    if request.duration is not None:
        words += ["--duration", str(request.duration)]
    if request.aspect_ratio is not None and (request.model, request.aspect_ratio) != (DEFAULT_MODEL, "landscape"):
        words += ["--portrait"] if request.aspect_ratio == "portrait" else ["--aspect-ratio", request.aspect_ratio]
    follows = "image-to-video" if request.image_urls else "text-to-video"
    if request.mode is not None and request.mode != follows:
        words += ["--mode", request.mode]
    for url in request.image_urls:
        words += ["--image", url]
    for name, value in request.options.items():
        words += ["--option", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    for tag in request.tags:
        words += ["--tag", tag]
    if not request.remove_watermark:
        words.append("--keep-watermark")
    # Two dashes: a prompt may begin with one.
    return f"{shlex.join(words)}{options} -- {shlex.quote(request.prompt)}"
