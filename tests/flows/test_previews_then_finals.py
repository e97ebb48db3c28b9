"""The previews of a batch, one answer, and its final videos, with a real Prefect API, a real MinIO and the sandbox."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from typing import Any

import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow_async
from pydantic import SecretStr

from apixo import VideoRequest
from apixo.video_request import STORED
from blocks import ApixoApi
from deployments.sandbox import SandboxServer
from flows.batch.calendar_rows import BatchItem, Row
from flows.preview_then_final import AnswerError
from flows.previews_then_finals import (
    ALL_8,
    ALL_12,
    AS_IN_CALENDAR,
    NONE,
    BatchAnswer,
    cost_of_all,
    cost_of_one,
    final_of,
    meaning,
    preview_row,
    previews_then_finals,
)
from tests.flows.conftest import StoredBlocks
from tests.flows.test_preview_then_final import answer, artifacts, lengths, paused, runs_named
from tests.support import make_api

ROWS = [{"id": name, "prompt": "Dunes at dawn", "duration": 8} for name in ("a", "b", "c")]


@pytest.fixture
def api(sandbox: SandboxServer) -> ApixoApi:
    return make_api(sandbox, price_per_second=Decimal("0.5"), submit_timeout_seconds=20)


def row(**fields: Any) -> Row:
    return Row(line=1, item=BatchItem(**({"prompt": "Dunes", "id": "a"} | fields)))


def test_preview_of_a_row_has_the_shortest_duration_and_the_same_name() -> None:
    nameless = row(id=None, model="kling-3-0-turbo", duration=8, fallback_models=["sora-2"])  # sora-2 has no 3 s
    short = preview_row(nameless)
    assert isinstance(short, Row)
    assert (short.item.duration, short.item.name()) == (4, nameless.item.name())


def test_answer_applies_to_all_waiting_rows_or_only_to_the_given_ones() -> None:
    waiting = {"a": row(), "b": row(id="b", duration=12)}
    given = {name: meaning(BatchAnswer(decision=ALL_8, only=name), waiting, ["c"], "k") for name in ("", "b", "c")}
    assert [[made.item.request() for made in rows or []] for rows in given.values()] == [
        [VideoRequest(prompt="Dunes", duration=8)] * 2,
        [VideoRequest(prompt="Dunes", duration=8)],
        [],  # its final video has already been submitted
    ]
    as_planned = meaning(BatchAnswer(decision=AS_IN_CALENDAR, only="k-preview-b"), waiting, [], "k")
    assert [made.item.duration for made in as_planned or []] == [12]
    assert meaning(BatchAnswer(decision=NONE, only="nobody"), waiting, [], "k") is None


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (BatchAnswer(decision=ALL_12, only="a, zz"), "zz"),
        (BatchAnswer(decision=AS_IN_CALENDAR), "as short as its preview"),
    ],
)
def test_invalid_answer_raises_error_with_the_reason(given: BatchAnswer, why: str) -> None:
    with pytest.raises(AnswerError, match=why):
        meaning(given, {"a": row()}, [], "k")


def test_paid_final_video_keeps_its_request_after_a_catalog_change() -> None:
    paid = VideoRequest.model_validate({"prompt": "Dunes", "duration": 7}, context=STORED)  # sora-2 no longer has 7 s
    assert final_of(row(), paid).item.request() == paid


def api_with_prices(**fields: Any) -> ApixoApi:
    return ApixoApi(api_key=Secret(value=SecretStr("no key")), currency="USD", **fields)


KLING = {"model": "kling-3-0-turbo", "aspect_ratio": "landscape"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (row(), "The final video costs 4.0 USD for 8 s or 6.0 USD for 12 s."),
        (row(duration=12), "The final video costs 4.0 USD for 8 s or 6.0 USD for 12 s."),
        (
            row(duration=10, **KLING),
            "The final video costs 4.0 USD for 8 s, 6.0 USD for 12 s or 5.0 USD as long as the calendar says.",
        ),
        (row(model="kling-2-6", options={"sound": False}, duration=10), ""),
        (row(model="veo-3-1", mode="fast"), "No final video: veo-3-1 has no length above its preview's."),
    ],
)
def test_preview_shows_the_cost_of_its_final_video(row: Row, expected: str) -> None:
    prices = {"kling-3-0-turbo": {"per_second": "0.5"}}
    assert cost_of_one(row, api_with_prices(price_per_second="0.5", prices=prices)) == expected


@pytest.mark.parametrize(
    ("api", "rows", "expected"),
    [
        (
            api_with_prices(price_per_second="0.5"),
            [row(), row(id="b", duration=12)],
            "All final videos together cost 8.0 USD for 8 s or 12.0 USD for 12 s, at the API block's prices.",
        ),
        (
            api_with_prices(price_per_second="0.5"),
            [row(duration=8), row(id="b", duration=12)],
            (
                "All final videos together cost 8.0 USD for 8 s, 12.0 USD for 12 s or 10.0 USD as long as the "
                "calendar says, at the API block's prices."
            ),
        ),
        (
            api_with_prices(price_per_second="0.5"),
            [row(), row(id="b", **KLING)],
            "The cost of all final videos is unknown: the API block has no price for kling-3-0-turbo.",
        ),
        (api_with_prices(), [row()], "The cost of all final videos is unknown: the API block has no price for sora-2."),
    ],
)
def test_total_cost_of_final_videos_is_shown_if_known_and_never_guessed(
    api: ApixoApi, rows: list[Row], expected: str
) -> None:
    assert cost_of_all(rows, api) == expected


@asynccontextmanager
async def running(stored: StoredBlocks, key: str, **more: Any) -> AsyncIterator[asyncio.Future[Any]]:
    parameters: dict[str, Any] = {"requests": ROWS} | more
    task: asyncio.Future[Any] = asyncio.ensure_future(
        previews_then_finals(key=key, api=stored.name, archive=stored.name, return_state=True, **parameters)
    )
    try:
        yield task
    finally:
        task.cancel()


async def test_final_videos_are_made_for_chosen_rows_and_a_rerun_pays_for_none_again(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    async with running(stored, key) as task:
        run = await paused(f"previews of batch {key}", "-0")
        assert lengths(sandbox) == [4, 4, 4]
        sheet = (await artifacts(run.id))[f"sheet-{key}-preview"]
        assert sheet.startswith("# Waits for your answer")
        assert sheet.count("data:image/jpeg") == 3
        await answer(run, decision=ALL_12, only="a, nobody")
        run = await paused(f"previews of batch {key}", "-1")
        assert "has the id nobody" in (await artifacts(run.id))[f"sheet-{key}-preview"]
        assert lengths(sandbox) == [4, 4, 4]
        await answer(run, decision=ALL_12, only="a, c")
        state: State[Any] = await task
    made = await state.aresult()
    assert {item.key: item.state for item in made.rows} == {f"{key}-final-{name}": "archived" for name in "ac"}
    assert lengths(sandbox) == [4, 4, 4, 12, 12]

    async with running(stored, key) as task:  # asks only about the remaining row
        run = await paused(f"previews of batch {key}", "-0")
        assert "answer about 1 preview" in (sheet := (await artifacts(run.id))[f"sheet-{key}-preview"])
        assert [name for name in "abc" if f"[{key}-preview-{name}]" in sheet] == ["b"]
        await answer(run, decision=ALL_8)
        assert (await task).is_completed()
    assert "Waits" not in (await artifacts(run.id))[f"sheet-{key}-preview"]
    assert lengths(sandbox) == [4, 4, 4, 12, 12, 8]

    async with running(stored, key) as again:  # no row is left to ask about
        assert len((await (await again).aresult()).rows) == 3
    assert lengths(sandbox) == [4, 4, 4, 12, 12, 8]


async def test_stopping_makes_no_final_video(stored: StoredBlocks, sandbox: SandboxServer, key: str) -> None:
    async with running(stored, key) as task:
        await answer(await paused(f"previews of batch {key}", "-0"), decision=NONE)
        state = await task
    assert state.is_completed()
    assert "no final videos. Archived: 3 previews." in (state.message or "")
    assert lengths(sandbox) == [4, 4, 4]


async def test_stopping_reports_the_previews_that_failed(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    async with running(stored, key, requests=[*ROWS[:1], {"id": "x", "prompt": "a forbidden thing"}]) as task:
        await answer(await paused(f"previews of batch {key}", "-0"), decision=NONE)
        state = await task
    assert state.is_failed()
    assert lengths(sandbox) == [4, 4]


async def test_run_without_an_answer_in_time_fails_and_pays_nothing_more(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    async with running(stored, key, answer_within_hours=3 / 3600) as task:
        state = await task
    (run,) = await runs_named(f"previews of batch {key}")
    assert state.is_failed()
    assert "Retry asks again" in (await artifacts(run.id))[f"sheet-{key}-preview"]
    assert lengths(sandbox) == [4, 4, 4]


async def test_max_spend_covers_previews_and_final_videos_together(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    async with running(stored, key, max_spend=10) as task:
        run = await paused(f"previews of batch {key}", "-0")
        sheet = (await artifacts(run.id))[f"sheet-{key}-preview"]
        assert "12.0 for 8 s, 18.0 for 12 s or 12.0 as long as the calendar says" in sheet
        await answer(run, decision=ALL_8)  # the previews cost 6, and one final video of 8 s costs 4
        state = await task
    assert state.is_failed()
    assert lengths(sandbox) == [4, 4, 4, 8]


async def test_deployed_run_waits_without_a_process_and_resumes_with_the_answer(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    parameters = {"requests": ROWS, "key": key, "api": stored.name, "archive": stored.name}
    async with get_client() as client:
        flow_id = await client.create_flow(previews_then_finals)
        deployment_id = await client.create_deployment(flow_id, name=key, enforce_parameter_schema=False)
        run = await client.create_flow_run_from_deployment(deployment_id, parameters=parameters)

        async def resume() -> FlowRun:
            found = await client.read_flow_run(run.id)
            with suppress(Pause):  # ends the process of a run that waits
                await run_flow_async(previews_then_finals, flow_run=found, parameters=parameters, return_type="state")
            return await client.read_flow_run(run.id)

        waiting_run = await resume()
        assert waiting_run.state
        assert waiting_run.state.name == "Suspended"
        await answer(waiting_run, decision=ALL_8, only="b")
        ended = await resume()
    assert ended.state
    assert ended.state.is_completed()
    assert lengths(sandbox) == [4, 4, 4, 8]
