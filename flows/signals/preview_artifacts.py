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
) -> None:
    """Creates the artifact with the preview and what can be decided."""
    picture = await asyncio.to_thread(thumbnail, poster, THUMBNAIL_PIXELS) if poster else None
    until = datetime.now(UTC) + timedelta(hours=hours)
    made = acreate_markdown_artifact(
        markdown=question_markdown(preview, archive, picture=picture, until=until, problem=problem, prices=prices),
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
) -> str:
    """The text of the question. Pure."""
    video = preview.video
    costs = " or ".join(f"{price} for {seconds} s" for seconds, price in prices.items() if price is not None)
    lines = [
        "# Waits for your answer",
        "",
        *([f"**The last answer could not be used:** {plain(problem)}", ""] if problem else []),
        *picture_and_player(preview, archive, thumbnail=picture),
        f"> {plain(preview.request.prompt[:500])}",
        "",
        (
            "**What to do.** Look at the preview, then press **Resume** at the top of the run. The form asks for the "
            "final video of 8 or 12 s, for another preview with a changed prompt or model, or to stop."
        ),
        "",
        f"**Cost.** The preview is paid. The final video costs {costs}, by the block's prices." if costs else
        "**Cost.** The preview is paid; the final video is paid as well.",
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
