"""Generations that need attention, with the commands for them. Pure."""

import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from apixo.constants import DEFAULT_MODEL, RESULT_DAYS
from flows.collect_videos import EXPIRING_AFTER
from flows.record.advice import advice
from flows.record.generation import Generation, State

FAILED_DAYS: Final = 7
"""How long a failure is shown at the top. The filter finds older ones."""

Why = Literal["unconfirmed", "expiring", "failed"]
_ORDER: Final[dict[Why, int]] = {"expiring": 0, "unconfirmed": 1, "failed": 2}


@dataclass(frozen=True, slots=True)
class Notice:
    """One generation that needs attention."""

    key: str
    why: Why
    message: str
    steps: list[list[tuple[str, bool]]]
    """What to do, in order. Each step is pieces of text, and whether each piece is a command."""


def notices(found: Iterable[Generation], options: str, now: datetime) -> list[Notice]:
    """What needs attention, the most urgent first. `options` are the command-line options that name the blocks."""
    made = [(item, why) for item in found if (why := _why(item, now)) is not None]
    made.sort(key=lambda pair: (_ORDER[pair[1]], -pair[0].updated_at.timestamp()))
    return [_notice(item, why, options) for item, why in made]


def _why(found: Generation, now: datetime) -> Why | None:
    waiting = found.state in (State.SUBMITTED, State.SUCCEEDED, State.UNCONFIRMED)
    if waiting and now - found.attempt.since > EXPIRING_AFTER:
        return "expiring"
    if found.state is State.UNCONFIRMED:
        return "unconfirmed"
    if found.state in (State.FAILED, State.REJECTED) and now - found.updated_at < timedelta(days=FAILED_DAYS):
        return "failed"
    return None


def _notice(found: Generation, why: Why, options: str) -> Notice:
    guidance, problem = advice(found, options), found.attempt.problem
    message = problem.message if problem else guidance.paid
    if why == "expiring":
        was = "sent, without a clear answer," if found.state is State.UNCONFIRMED else "submitted"
        message = (
            f"It was {was} on {found.attempt.since.astimezone(UTC):%Y-%m-%d at %H:%M} UTC and is not archived. "
            f"APIXO keeps results for {RESULT_DAYS} days or, according to an older page of its documentation, 24 hours."
        )
    return Notice(found.key, why, message.replace("`", ""), [pieces(step) for step in guidance.steps])


def pieces(text: str) -> list[tuple[str, bool]]:
    """The sentence, split at its backticks, with whether each piece was inside them and so is a command."""
    parts = re.split("`([^`]*)`", text)
    return [(part, bool(number % 2)) for number, part in enumerate(parts) if part]


def generate_command(found: Generation, options: str) -> str:
    """The `sora generate` command for the same request. It has no key, so it makes another video."""
    request = found.request
    words = ["sora", "generate"]
    if request.model != DEFAULT_MODEL:
        words += ["--model", request.model]
    for model in request.fallback_models:
        words += ["--fallback-model", model]
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
        words += ["--option", f"{name}={json.dumps(value, ensure_ascii=False)}"]
    for tag in request.tags:
        words += ["--tag", tag]
    if not request.remove_watermark:
        words.append("--keep-watermark")
    # Two dashes: a prompt may begin with one.
    return f"{shlex.join(words)}{options} -- {shlex.quote(request.prompt)}"
