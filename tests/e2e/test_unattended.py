"""The pipeline without a user: `sora up`, then events, schedules and callbacks."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.exceptions import PrefectHTTPStatusError

from deployments.local.processes import ManagedProcess
from flows.record.generation import State
from tests.e2e.running import FINAL, ROOT, Json, Running, descendants, kill_all
from tests.support import unique
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(400)

VOLATILE = ("updated", "last_polled", "status", "active_slots")
"""Fields that change by themselves: through the worker, or through a run that a schedule starts in the meantime."""


def without_volatile(value: Any) -> Any:
    """A response of Prefect's API without the volatile fields, at any depth."""
    if isinstance(value, dict):
        return {name: without_volatile(item) for name, item in value.items() if name not in VOLATILE}
    return [without_volatile(item) for item in value] if isinstance(value, list) else value


async def test_second_setup_changes_nothing(running: Running) -> None:
    async def deployed() -> list[Json]:
        automations = await running.call("/automations/filter")
        deployments = await running.call("/deployments/filter")
        pools = [{"id": item["id"], "created": item["created"]} for item in await running.call("/work_pools/filter")]
        documents = await running.call("/block_documents/filter", {"include_secrets": True})
        return [without_volatile(item) for item in (*automations, *deployments, *pools, *documents)]

    before = await deployed()
    second = await running.sora("setup")
    assert second.returncode == 0, second.stderr
    lines = [line.split() for line in second.stdout.splitlines()]
    assert {line[-1] for line in lines} == {"unchanged"}, second.stdout
    assert {"apixo-api", "video-archive", "bucket", "deployment", "work"} <= {line[0] for line in lines}
    assert await deployed() == before


ON_EVENT = "generate-video/generate-video-on-event"


async def test_duplicate_events_produce_one_video(running: Running) -> None:
    key = unique("event")
    payload = {"key": key, "request": {"prompt": f"A fox in fresh snow, {key}"}}
    began = time.monotonic()
    event_id = await running.emit("sora.video.requested", payload)
    for _ in range(2):
        await running.emit("sora.video.requested", payload, event_id=event_id)
    await running.emit("sora.video.requested", payload)
    (generation,) = await running.wait_for_archived(key)
    print(f"\nfrom the event to the archived video: {time.monotonic() - began:.1f} s")

    async def both_ended() -> bool:
        runs = [run for run in await running.runs(ON_EVENT) if run["parameters"].get("key") == key]
        return len([run for run in runs if run["state_type"] in FINAL]) == 2

    await until(both_ended, what="the runs of both events")
    assert len(await running.posts(key)) == 1
    assert generation.request.prompt == payload["request"]["prompt"]  # type: ignore[index]


async def test_event_without_key_uses_event_id_as_key(running: Running) -> None:
    prompt = unique("no key")
    event_id = await running.emit("sora.video.requested", {"request": {"prompt": prompt, "aspect_ratio": "portrait"}})
    (generation,) = await running.wait_for_archived(event_id)
    assert generation.request.aspect_ratio == "portrait"
    assert len(await running.posts(prompt)) == 1


ATTACK_ONLY = pytest.mark.attack  # each needs a flow run in its own process


@pytest.mark.parametrize(
    ("payload", "reported"),
    [
        pytest.param({}, "prompt", id="empty", marks=ATTACK_ONLY),
        pytest.param({"request": "a fox"}, "request", id="request is not an object", marks=ATTACK_ONLY),
        pytest.param({"request": {"prompt": "a fox", "duration": 5}}, "duration", id="bad duration", marks=ATTACK_ONLY),
        pytest.param({"request": {"prompt": "a fox", "seconds": 4}}, "seconds", id="unknown field", marks=ATTACK_ONLY),
        pytest.param({"request": {"prompt": "a fox"}, "key": "A Fox"}, "key", id="bad key", marks=ATTACK_ONLY),
        pytest.param({"request": {"prompt": "a fox"}, "wait": "soon"}, "wait", id="bad wait", marks=ATTACK_ONLY),
        pytest.param({"request": {"prompt": "{{ 7 * 7 }} {% endraw %}", "duration": "x"}}, "duration", id="template"),
    ],
)
async def test_malformed_event_fails_run_with_explanation(payload: Json, reported: str, running: Running) -> None:
    before = {run["id"] for run in await running.runs(ON_EVENT)}
    posts = len(await running.posts())
    await running.emit("sora.video.requested", payload)

    async def new_run() -> Json | None:
        new = [run for run in await running.runs(ON_EVENT) if run["id"] not in before]
        return new[0] if new else None

    run = await running.wait_for_end(await until(new_run, what="a run for the malformed event"))
    assert run["state_type"] == "FAILED"
    assert reported in run["state"]["message"], run["state"]["message"]
    assert len(await running.posts()) == posts


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("generate-batch/generate-batch", "Nothing was submitted"),
        pytest.param(ON_EVENT, "prompt", marks=ATTACK_ONLY),
        pytest.param("generate-video/after-storyboard", "prompt", marks=ATTACK_ONLY),
    ],
)
async def test_quick_run_submits_nothing_and_reports_missing_parameters(
    name: str, reason: str, running: Running
) -> None:
    posts = len(await running.posts())
    ended = await running.wait_for_end(await running.start(name))
    assert ended["state_type"] == "FAILED"
    assert reason in ended["state"]["message"], ended["state"]["message"]
    assert len(await running.posts()) == posts


@pytest.mark.parametrize(
    ("parameters", "named"),
    [({}, "request"), ({"request": {"prompt": "a fox"}, "key": "A Fox"}, "key")],
    ids=["quick run", "bad key"],
)
async def test_invalid_form_input_creates_no_run(parameters: Json, named: str, running: Running) -> None:
    found = await running.deployment("generate-video/generate-video")
    before = len(await running.runs("generate-video/generate-video"))
    with pytest.raises(PrefectHTTPStatusError, match=f"Validation failed.*{named}"):
        await running.call(f"/deployments/{found['id']}/create_flow_run", {"parameters": parameters})
    assert len(await running.runs("generate-video/generate-video")) == before


async def test_example_is_triggered_only_by_its_own_deployment(running: Running) -> None:
    example = await running.deployment("write-storyboard/write-storyboard")
    flow_id = example["flow_id"]
    other = await running.call("/deployments/", {"name": unique("mine"), "flow_id": flow_id})
    completed = {"type": "COMPLETED"}
    runs = [
        await running.call("/flow_runs/", {"flow_id": flow_id, "deployment_id": deployment_id, "parameters": {}})
        for deployment_id in (None, other["id"], example["id"])
    ]
    for run in runs:
        await running.call(f"/flow_runs/{run['id']}/set_state", {"state": completed, "force": True})

    async def triggered() -> set[str]:
        return {run["parameters"]["key"] for run in await running.runs("generate-video/after-storyboard")
                if "key" in run["parameters"]}  # fmt: skip

    *others, narrow = (f"storyboard-{run['id']}" for run in runs)
    await until(lambda: _contains(triggered, narrow), what="the example's own trigger")  # of the last one
    assert not await triggered() & set(others)


async def _contains(keys: Callable[[], Awaitable[set[str]]], key: str) -> bool:
    return key in await keys()


async def test_only_completed_upstream_flow_triggers_video(running: Running) -> None:
    posts = len(await running.posts())
    failed = await running.start("write-storyboard/write-storyboard", scene=" ")
    assert (await running.wait_for_end(failed))["state_type"] == "FAILED"
    scene = f"A 'lighthouse' above \"a quiet sea\", {unique('scene')}"
    run = await running.start("write-storyboard/write-storyboard", scene=scene, aspect_ratio="portrait")
    assert (await running.wait_for_end(run))["state_type"] == "COMPLETED"
    (generation,) = await running.wait_for_archived(f"storyboard-{run['id']}")
    assert generation.request.prompt == scene
    assert generation.request.aspect_ratio == "portrait"
    assert len(await running.posts(scene.rpartition(", ")[2])) == 1
    assert await running.recorded(f"storyboard-{failed['id']}") == [None]
    assert len(await running.posts()) == posts + 1


async def test_scheduled_runs_generate_only_rows_added_since_last_run(running: Running) -> None:
    key = unique("daily")
    calendar = running.local_dir / f"{key}.csv"
    calendar.write_text(f"id,prompt\na,First {key}\n")
    found = await running.deployment("generate-batch/generate-batch")
    assert found["schedules"] == []
    schedule = {"schedule": {"interval": 6, "anchor_date": "2026-01-01T00:00:00Z"}, "active": True}
    schedule["parameters"] = {"calendar": str(calendar)}
    (created,) = await running.call(f"/deployments/{found['id']}/schedules", [schedule])
    try:
        await running.call(
            f"/deployments/{found['id']}/schedule", {"max_runs": 20}
        )  # as the scheduler does, once a minute
        await running.wait_for_archived(f"{key}-a")
        calendar.write_text(f"id,prompt\na,First {key}\nb,Second {key}\n")
        await running.wait_for_archived(f"{key}-b")

        async def two_completed() -> bool:
            runs = [run for run in await running.runs("generate-batch/generate-batch") if run["auto_scheduled"]]
            return len([run for run in runs if run["state_type"] == "COMPLETED"]) >= 2

        await until(two_completed, what="two scheduled runs")
    finally:
        await running.prefect.delete(f"{running.api_url}/deployments/{found['id']}/schedules/{created['id']}")
    assert len(await running.posts(key)) == 2


async def test_callback_wakes_waiting_run(running: Running) -> None:
    key = unique("woken")
    await running.start("generate-video/generate-video", request={"prompt": f"Awake, {key}"}, key=key)
    (generation,) = await running.wait_for_archived(key)
    completed_ms = generation.provider_times_ms["completed"]
    assert completed_ms is not None
    assert generation.archived_at is not None
    took = generation.archived_at.timestamp() - completed_ms / 1000
    # If the machine is so busy that the task takes long, the run has polled once before its end.
    requested = [
        item
        for item in await running.requests()
        if item["call"] == "status" and item["task_id"] == generation.task_id and item["time"] * 1000 >= completed_ms
    ]
    print(f"\nfrom the provider's completion to archived, waiting: {took:.2f} s, {len(requested)} status calls")
    assert took < 60
    assert len(requested) == 1


async def test_callback_archives_detached_video(running: Running) -> None:
    key = unique("detached")
    run = await running.start("generate-video/generate-video", request={"prompt": f"Free, {key}"}, key=key, wait=False)
    assert (await running.wait_for_end(run))["state_type"] == "COMPLETED"
    (generation,) = await running.wait_for_archived(key)
    completed_ms = generation.provider_times_ms["completed"]
    assert completed_ms is not None
    assert generation.archived_at is not None
    took = generation.archived_at.timestamp() - completed_ms / 1000
    print(f"\nfrom the provider's completion to archived, detached: {took:.1f} s")
    assert took < 60


async def test_callback_reconciles_lost_reply_after_process_was_killed(running: Running) -> None:
    key = unique("reconciled")
    await running.fault(call="submit", kind="hang_after", seconds=60, prompt_contains=key)
    await running.fault(call="callback", kind="late", seconds=4, prompt_contains=key)
    await running.start("generate-video/generate-video", request={"prompt": f"Reconciled, {key}"}, key=key)

    async def claimed() -> int | None:
        (found,) = await running.recorded(key)
        return found.attempt.claimed_by.pid if found and await running.posts(key) else None

    kill_all([await until(claimed, what="the claim", pause=0.05)])
    (generation,) = await running.wait_for_archived(key)
    assert len(generation.attempts) == 1
    assert generation.attempt.note
    assert len(await running.posts(key)) == 1


# In `make test`, `tests/flows/test_generate_batch.py` does the same with twenty rows in one process.
@pytest.mark.attack  # needs an idle machine
async def test_batch_reports_five_different_failures_and_retry_pays_only_for_retryable_rows(running: Running) -> None:
    """A bad row, a missing image, a forbidden prompt, a temporary failure, and a lost paid call."""
    key = unique("fifty")
    rows: list[Json] = [{"prompt": f"The same video, {key}", "id": f"{number:02}"} for number in range(50)]
    rows[7]["duration"] = 5
    rows[17] |= {"prompt": f"Picture, {key}", "image_urls": [f"{running.sandbox_url}/samples/harbor.jpg"]}
    rows[27]["prompt"] = f"forbidden, {key}"
    rows[37]["prompt"] = f"Unlucky, {key}"
    rows[47]["prompt"] = f"Lost, {key}"
    await running.fault(call="image", kind="http_404")
    await running.fault(call="status", kind="failed", times=-1, prompt_contains=f"Unlucky, {key}")
    await running.fault(call="submit", kind="reset_before", prompt_contains=f"Lost, {key}")
    calendar = running.local_dir / "fifty.jsonl"
    calendar.write_text("".join(json.dumps(row) + "\n" for row in rows))
    batch = {"calendar": str(calendar), "key": key, "on_bad_rows": "skip", "max_in_flight": 10}
    ended = await running.wait_for_end(await running.start("generate-batch/generate-batch", **batch))
    assert ended["state_type"] == "FAILED"
    keys = [f"{key}-{number:02}" for number in range(50) if number not in (7, 17, 27, 37, 47)]
    await running.wait_for_archived(*keys)
    assert len(await running.posts(key)) == 48  # 45, and the last three of the five
    table = await running.table(f"batch-{key}")
    reported = {row["line"]: f"{row['state']}: {row['what to do']}" for row in table if row["what to do"]}
    assert sorted(reported) == [8, 18, 28, 38, 48]
    for line, words in {
        8: "bad row: duration", 18: "not submitted: ", 28: "CONTENT_VIOLATION", 38: "SOMETHING_NEW",
        48: f"unconfirmed: .*sora resolve {key}-47 --task-id",
    }.items():  # fmt: skip
        assert re.search(words, reported[line]), reported[line]
        assert re.search(rf"line {line} .*{words.rpartition(': ')[2]}", ended["state"]["message"])

    (await running.http.delete(f"{running.sandbox_url}/sandbox/faults")).raise_for_status()
    retried = await running.retry(ended)
    assert retried["state_type"] == "FAILED"
    await running.wait_for_archived(f"{key}-17", f"{key}-37")
    assert len(await running.posts(key)) == 50  # the image that exists now, and the temporary failure
    left = [row["line"] for row in await running.table(f"batch-{key}") if row["what to do"]]
    assert left == [8, 28, 48]


@pytest.mark.attack  # needs an idle machine
async def test_few_collector_runs_archive_two_hundred_detached_videos(running: Running) -> None:
    key = unique("flood")
    collector = "collect-videos/collect-videos"
    before = {run["id"] for run in await running.runs(collector)}
    rows = [{"prompt": f"The same video, {key}", "id": f"{number:03}"} for number in range(200)]
    run = await running.start(
        "generate-batch/generate-batch", requests=rows, calendar="", key=key, wait=False, submissions_per_second=13
    )
    ended = await running.wait_for_end(run)
    assert ended["state_type"] == "COMPLETED"
    posts = [item["time"] for item in await running.posts(key)]
    assert len(posts) == 200
    await running.wait_for_archived(*(f"{key}-{number:03}" for number in range(200)), seconds=150)
    calls = sorted(
        attempt["time"] for task in await running.tasks() if key in str(task) for attempt in task["callbacks"]
    )
    densest = max(sum(start <= call < start + 10 for call in calls) for start in calls)
    runs = [run for run in await running.runs(collector) if run["id"] not in before and not run["auto_scheduled"]]
    print(f"\n{densest} of {len(calls)} callbacks within 10 s: {len(runs)} collector runs")
    assert len(calls) == 200
    assert densest >= 100
    assert len(runs) <= 3
    assert "CANCELLED" not in {run["state_type"] for run in await running.runs(collector)}
    assert len(await running.posts(key)) == 200


@pytest.mark.attack  # needs an idle machine
@pytest.mark.parametrize("way", ["rerun", "new run"])
async def test_batch_pays_each_row_once_after_worker_is_killed(way: str, running: Running, tmp_path: Path) -> None:
    key = unique("killed")
    batch = "generate-batch/generate-batch"
    parameters = {
        "requests": [{"prompt": f"The same video, {key}", "id": f"{number:02}"} for number in range(30)],
        "calendar": "",
        "key": key,
        "max_in_flight": 10,
    }
    deployed = await running.deployment(batch)  # its process must be the worker's own, so that it is killed with it
    url = f"{running.api_url}/deployments/{deployed['id']}"
    await running.prefect.patch(url, json={"job_variables": {}})
    regular = running.info.services["worker"].pid
    os.killpg(regular, signal.SIGSTOP)  # it must not take part, but if it died, its stack would stop
    try:
        doomed = ManagedProcess(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", "sora", "--type", "process"],
            name="worker",
            log_path=tmp_path / "worker.log",
            environment={
                **running.environment,
                **running.info.public_environment,
                "PREFECT_WORKER_QUERY_SECONDS": "1",
            },
            cwd=ROOT,
        )
        try:
            run = await running.start(batch, **parameters)

            async def under_way() -> bool:
                return len(await running.posts(key)) >= 12

            await until(under_way, what="the middle of the batch", pause=0.05)
            kill_all([doomed.pid, *descendants(doomed.pid)])
        finally:
            doomed.kill()
    finally:
        os.killpg(regular, signal.SIGCONT)
    paid = len(await running.posts(key))
    assert paid < 30
    if way == "rerun":  # as the zombie automation of the guide does, and then a user
        state = {"type": "CRASHED", "name": "Crashed", "message": "No heartbeat"}
        await running.call(f"/flow_runs/{run['id']}/set_state", {"state": state, "force": True})
        ended = await running.retry(await running.wait_for_end(run))
    else:
        ended = await running.wait_for_end(await running.start(batch, **parameters))
    # A claim whose owner was killed may have been paid: it ends unconfirmed until its callback reconciles it.
    keys = [f"{key}-{number:02}" for number in range(30)]
    found = await running.wait_for_archived(*keys)
    assert {attempt.state for item in found for attempt in item.attempts} == {State.ARCHIVED}
    assert len(await running.posts(key)) == 30, ended["state"]["message"]
