"""What the Prefect UI shows of a run that waits for a person's answer about a preview."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from prefect.artifacts import acreate_markdown_artifact

from blocks import VideoArchive
from flows.record.generation import Generation
from flows.signals.artifacts import THUMBNAIL_PIXELS, artifact_key, picture_and_player, plain, shown
from flows.signals.run_artifacts import time
from flows.signals.thumbnail import thumbnail


async def publish_question(
    preview: Generation,
    archive: VideoArchive,
    *,
    poster: bytes | None,
    hours: float,
    problem: str,
    prices: Mapping[int, Decimal | None],
    currency: str | None,
) -> None:
    """Creates the artifact with the preview and what can be decided."""
    picture = await asyncio.to_thread(thumbnail, poster, THUMBNAIL_PIXELS) if poster else None
    until = datetime.now(UTC) + timedelta(hours=hours)
    text = question_markdown(
        preview, archive, picture=picture, until=until, problem=problem, prices=prices, currency=currency
    )
    made = acreate_markdown_artifact(
        markdown=text,
        key=artifact_key(preview.key, kind="question"),
        description=f"Waits for your answer: {preview.key}",
    )
    await shown(made, what=f"the question about {preview.key}")


def question_markdown(
    preview: Generation,
    archive: VideoArchive,
    *,
    picture: bytes | None,
    until: datetime,
    problem: str,
    prices: Mapping[int, Decimal | None],
    currency: str | None,
) -> str:
    """The text of the question. Pure."""
    video = preview.video
    costs = known_costs({f"for {seconds} s": price for seconds, price in prices.items()}, currency)
    cost = (
        f"The final video costs {costs}, by the API block's prices."
        if costs
        else f"What the final video costs is not known: the API block has no price of {plain(preview.asked.model)}."
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
            "menu ⋮). The form asks for the final video of 8 or 12 s, for another preview with a changed prompt or "
            "model, or to stop."
        ),
        "",
        f"**Cost.** The preview is paid. {cost}",
        "",
        (
            f"**Until {time(until)}.** After that the run ends failed, and nothing more is paid. To be asked again: "
            "**Retry** that run, which makes no second preview."
        ),
        "",
        f"| preview | {plain(preview.key)} |",
        "|---|---|",
        f"| model | {plain(preview.asked.model)} |",
        f"| length | {f'{video.duration_seconds:.1f} s' if video and video.duration_seconds else ''} |",
        "",
        f"To watch it elsewhere: `sora show {preview.key} --link`",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def known_costs(prices: Mapping[str, Decimal | None], currency: str | None) -> str:
    """The prices that are known, each with what it is for; empty: none is. Pure."""
    known = [
        f"{price:f}{f' {currency}' if currency else ''} {what}" for what, price in prices.items() if price is not None
    ]
    return " or ".join(filter(None, (", ".join(known[:-1]), *known[-1:])))
