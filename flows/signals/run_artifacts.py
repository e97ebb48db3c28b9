"""The artifact of a run that ends without a video: what happened, whether it was paid, and what to do.

It has the same key as the video's own artifact, so the newest version shows the video's state.
"""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from apixo.redaction import hide_queries
from blocks import VideoArchive
from flows.record.advice import Advice, advice, show_command
from flows.record.generation import Generation
from flows.signals.artifacts import artifact_key, plain, show_markdown
from flows.signals.thumbnail import thumbnail
from flows.signals.video_artifact import THUMBNAIL_PIXELS, picture_and_player
from flows.wording import utc

MOST_REASON_CHARACTERS = 2_000


async def publish_failure(key: str, reason: str, guidance: Advice, found: Generation | None) -> None:
    """Creates the artifact of a run that failed."""
    await show_markdown(
        failure_markdown(key, reason, guidance, found), key=artifact_key(key), description=f"{guidance.title}: {key}"
    )


async def publish_on_its_way(generation: Generation, options: str) -> None:
    """Creates the artifact of a run that does not wait for its video."""
    await show_markdown(
        on_its_way_markdown(generation, options),
        key=artifact_key(generation.key),
        description=f"On its way: {generation.key}",
    )


def failure_markdown(key: str, reason: str, guidance: Advice, found: Generation | None) -> str:
    """The text for a failure. Pure. External text cannot become markup."""
    lines = [
        f"# {guidance.title}: {plain(key)}",
        "",
        f"**What happened.** {plain(hide_queries(reason)[:MOST_REASON_CHARACTERS])}",
        "",
        f"**Was it paid?** {guidance.paid}",
        "",
        "**What to do**",
        "",
        *(f"{number}. {step}" for number, step in enumerate(guidance.steps, 1)),
    ]
    if found is not None:
        lines += ["", *_facts(found)]
    return "\n".join(lines) + "\n"


def on_its_way_markdown(generation: Generation, options: str) -> str:
    """The text for a video that is still being generated. Pure."""
    lines = [
        f"# On its way: {plain(generation.key)}",
        "",
        f"> {plain(generation.request.prompt[:500])}",
        "",
        f"**Paid:** {advice(generation, options).paid} This run does not wait for it.",
        "",
        (
            "**What happens next.** The deployment `collect-videos`, which runs every 5 minutes or when a callback "
            "comes, archives it. This artifact then gets a new version, with the video."
        ),
        "",
        f"To look at it: {show_command(generation.key, options)}",
        "",
        *_facts(generation),
    ]
    return "\n".join(lines) + "\n"


async def publish_question(
    preview: Generation,
    archive: VideoArchive,
    problem: str,
    *,
    poster: bytes | None,
    hours: float,
    prices: Mapping[str, Decimal | None],
    currency: str | None,
    options: str,
) -> None:
    """Creates the artifact with the preview and the possible decisions."""
    picture = await asyncio.to_thread(thumbnail, poster, THUMBNAIL_PIXELS) if poster else None
    until = datetime.now(UTC) + timedelta(hours=hours)
    video = preview.video
    costs = known_costs(prices, currency)
    cost = (
        f"The final video costs {costs}, at the API block's prices."
        if costs
        else f"The cost of the final video is unknown: the API block has no price for {plain(preview.requested.model)}."
    )
    lines = [
        "# Waits for your answer",
        "",
        *([f"**The last answer could not be used:** {plain(problem)}", ""] if problem else []),
        *picture_and_player(preview, archive, thumbnail=picture),
        f"> {plain(preview.request.prompt[:500])}",
        "",
        (
            "**What to do.** Look at the preview, then press **Resume** at the top of the run (in the V2 UI in its "
            "menu ⋮). The form lets you choose a final video of 8 or 12 s or as long as requested, if the model makes "
            "such a one, another preview with a changed prompt or model, or to stop."
        ),
        "",
        f"**Cost.** The preview is paid. {cost}",
        "",
        (
            f"**Until {utc(until)}.** After that the run fails, and nothing more is paid. To be asked again: "
            "**Retry** that run, which makes no second preview."
        ),
        "",
        f"| preview | {plain(preview.key)} |",
        "|---|---|",
        f"| model | {plain(preview.requested.model)} |",
        f"| length | {f'{video.duration_seconds:.1f} s' if video and video.duration_seconds else ''} |",
        "",
        f"To watch it elsewhere: {show_command(preview.key, options, ' --link')}",
        "",
    ]  # fmt: skip
    await show_markdown(
        "\n".join(lines),
        key=artifact_key(preview.key, kind="question"),
        description=f"Waits for your answer: {preview.key}",
    )


def known_costs(prices: Mapping[str, Decimal | None], currency: str | None) -> str:
    """The known prices, each with what it is for; empty if there are none. Pure."""
    known = [
        f"{price:f}{f' {currency}' if currency else ''} {what}" for what, price in prices.items() if price is not None
    ]
    return " or ".join(filter(None, (", ".join(known[:-1]), *known[-1:])))


def _facts(found: Generation) -> list[str]:
    attempt = found.attempt
    rows = {
        "state": found.state.value,
        "attempt": str(attempt.number),
        "claimed": utc(attempt.claimed_at),
        "task": found.task_id or "unknown",
        "flow run": attempt.claimed_by.flow_run_id or "none",
        "seconds of video": str(found.requested.seconds or "unknown"),
    }
    # The first row is the table's header: an empty header would be shown as an empty bar.
    head, *others = (f"| {name} | {plain(value)} |" for name, value in rows.items())
    return [head, "|---|---|", *others]
