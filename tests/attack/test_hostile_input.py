"""Hostile input through the whole flow, checked by what reached the provider, internal hosts and the ledger."""

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

import pytest
from prefect.client.base import PrefectHttpxAsyncClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from apixo import VideoRequest
from blocks import VideoArchive
from deployments.local.prefect_server import PrefectServer
from deployments.sandbox import SandboxServer
from deployments.sandbox.rendering import render_video
from flows.batch.cells import line_ends
from flows.batch.summary import BatchFailedError, BatchSummary
from flows.collect_videos import CollectionError, collect_videos
from flows.generate_batch import generate_batch
from flows.media.media_errors import ForbiddenUrlError
from flows.record.generation import State
from flows.record.ledger import Ledger
from flows.signals.artifacts import artifact_key
from tests.attack.hostile_provider import HostileProvider, InternalHost, hostile_provider
from tests.deployments.cli.sora import Sora
from tests.flows.conftest import StoredBlocks, store_blocks
from tests.flows.signals.test_artifacts import CONTROLS, NASTY, RENDERER, inline, shape
from tests.flows.signals.test_events import read_events
from tests.support import make_api

LOOPBACK: Final = [
    "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f.1", "0x7f000001", "0X7F.0.0.0x1", "017700000001", "localhost",
    "LocalHost", "localhost.", "127.0.0.1.", "[::1]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
    "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "0.0.0.0", "0", "[::]",  # noqa: S104
    "127\u30020\u30020\u30021", "\uff11\uff12\uff17.0.0.1", "127.0.0.1%2f@8.8.8.8", "8.8.8.8@127.0.0.1",
    "user:hunter2@127.0.0.1", "8.8.8.8\\@127.0.0.1", "127.0.0.1\t", "127.0.0.1\n", "\x7f.0.0.1",
]  # fmt: skip
"""Valid and invalid spellings of the loopback address."""
FORBIDDEN_URLS: Final = [
    "http://10.0.0.1/v.mp4", "http://192.168.0.1/v.mp4", "http://172.16.0.1/v.mp4", "http://100.64.0.1/v.mp4",
    "http://169.254.169.254/latest/meta-data/", "http://2852039166/", "http://0xa9fea9fe/", "http://0251.0376.0251.0376/",
    "http://[fe80::1]/v.mp4", "http://[fe80::1%25lo]/v.mp4", "http://[::ffff:10.0.0.1]/v.mp4", "http://[fc00::1]/",
    "http://[fd00:ec2::254]/latest/", "file:///etc/passwd", "FILE:/etc/passwd", "file://localhost/etc/passwd",
    "ftp://127.0.0.1/v.mp4", "data:video/mp4;base64,AAAA", "javascript:alert(1)", "gopher://127.0.0.1:6379/_INFO",
    "/etc/passwd", "//127.0.0.1/v.mp4", "http:/127.0.0.1/v.mp4", "http:\\\\127.0.0.1\\v.mp4", "\\\\127.0.0.1\\share",
    "http://", "https://user:hunter2@8.8.8.8/v.mp4", "http://8.8.8.8:22/", "s3://sora-videos/v.mp4",
]  # fmt: skip
FORBIDDEN_REDIRECTS: Final = [
    "http://169.254.169.254/latest/meta-data/", "//169.254.169.254/v.mp4", "HTTP://2852039166/v.mp4",
    "http://[::ffff:a9fe:a9fe]/", "http://[64:ff9b::a9fe:a9fe]/", "http://[fe80::1]/", "http://0.0.0.0/", "http://[::]/",
    "file:///etc/passwd", "FILE:/etc/passwd", "ftp://127.0.0.1/v.mp4", "data:video/mp4;base64,AAAA",
    "http://user:hunter2@127.0.0.1/", "javascript:alert(1)", "http://127.0.0.1:22/",
]  # fmt: skip
"""Rejected even if private hosts are allowed, as they must be here, because the redirecting host is on this machine."""


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("video") / "video.mp4"
    render_video(
        path, prompt="Dunes", duration_seconds=4, aspect_ratio="landscape", height=90, image=None, watermark=False
    )
    return path.read_bytes()


@pytest.fixture
def provider(video: bytes, prefect_server: PrefectServer) -> Iterator[HostileProvider]:
    with hostile_provider(video) as running:
        yield running


@pytest.fixture
def sora(stored: StoredBlocks, prefect_server: PrefectServer, tmp_path: Path) -> Iterator[Sora]:
    cli = Sora(tmp_path, prefect_server.environment, [stored.archive.secret_key.get_secret_value()])
    yield cli
    cli.close()


@pytest.fixture
def internal() -> Iterator[InternalHost]:
    host = InternalHost()
    yield host
    host.close()


async def stored_for(
    provider: HostileProvider, archive: VideoArchive, sandbox: SandboxServer, *, allow_private_hosts: bool
) -> StoredBlocks:
    api = make_api(
        sandbox, base_url=provider.url, allow_private_hosts=allow_private_hosts, submit_timeout_seconds=10,
        max_in_flight=20,
    )  # fmt: skip
    return await store_blocks(api, archive)


async def run_batch(stored: StoredBlocks, key: str, rows: list[dict[str, Any]], **parameters: Any) -> BatchSummary:
    """Runs a batch in which every hostile row fails, so the batch fails."""
    with pytest.raises(BatchFailedError) as caught:
        await generate_batch(
            requests=rows, key=key, api=stored.name, archive=stored.name, on_bad_rows="skip",
            submissions_per_second=100, **parameters,
        )  # fmt: skip
    return caught.value.summary


async def open_keys(stored: StoredBlocks) -> list[str]:
    async with aclosing(stored.archive.store()) as store:
        return await Ledger(store).open_keys()


async def states(stored: StoredBlocks, keys: list[str]) -> set[State]:
    async with aclosing(stored.archive.store()) as store:
        return {found.state for found in (await Ledger(store).read_all(keys)).values()}


async def test_internal_image_urls_are_neither_requested_nor_paid_for(
    provider: HostileProvider, internal: InternalHost, archive: VideoArchive, sandbox: SandboxServer, key: str
) -> None:
    stored = await stored_for(provider, archive, sandbox, allow_private_hosts=False)
    urls = [*(f"http://{host}:{internal.port}/a.png" for host in LOOPBACK), *FORBIDDEN_URLS]
    rows = [{"id": f"bad-{number}", "prompt": "Dunes", "image_urls": [url]} for number, url in enumerate(urls)]
    rows.insert(3, {"id": "good", "prompt": "Dunes"})
    summary = await run_batch(stored, key, rows, wait=False)
    assert provider.posts == ["Dunes"]  # the good one
    assert internal.clients == []
    assert provider.requested == []
    assert {row.state for row in summary.rows} == {"submitted", "not submitted", "bad row"}
    assert [row.line for row in summary.rows if row.ok] == [4]
    assert "hunter2" not in summary.model_dump_json()
    assert await open_keys(stored) == [f"{key}-good"]


async def test_internal_host_is_reached_if_private_hosts_are_allowed(
    provider: HostileProvider, internal: InternalHost, archive: VideoArchive, sandbox: SandboxServer, key: str
) -> None:
    """Shows that the test above can fail."""
    stored = await stored_for(provider, archive, sandbox, allow_private_hosts=True)
    rows = [
        {"id": f"{number}", "prompt": "Dunes", "image_urls": [f"http://{host}:{internal.port}/a.png"]}
        for number, host in enumerate(["127.0.0.1", "0x7f.1", "017700000001", "localhost", "[::1]"])
    ]
    await run_batch(stored, key, rows, wait=False)
    assert {client.removeprefix("::ffff:") for client in internal.clients} == {"127.0.0.1", "::1"}
    assert provider.posts == []


async def test_paid_video_with_forbidden_url_stays_open_until_url_changes(
    provider: HostileProvider,
    internal: InternalHost,
    archive: VideoArchive,
    sandbox: SandboxServer,
    key: str,
    video: bytes,
) -> None:
    stored = await stored_for(provider, archive, sandbox, allow_private_hosts=False)
    urls = [*(f"http://{host}:{internal.port}/v.mp4" for host in LOOPBACK), *FORBIDDEN_URLS]
    await stays_open_and_is_archived_later(provider, stored, key, urls)
    assert internal.clients == []


async def test_redirect_to_forbidden_url_loses_no_paid_video(
    provider: HostileProvider, archive: VideoArchive, sandbox: SandboxServer, key: str
) -> None:
    stored = await stored_for(provider, archive, sandbox, allow_private_hosts=True)
    provider.redirects = {str(number): location for number, location in enumerate(FORBIDDEN_REDIRECTS)}
    provider.redirects |= {f"chain-{number}": f"/to/{number}" for number in range(len(FORBIDDEN_REDIRECTS))}
    first = ["/to/" + name for name in provider.redirects]
    await stays_open_and_is_archived_later(provider, stored, key, [provider.url + path for path in first])
    # Each URL twice, by the run and by the collector, and nothing but the redirects themselves and the good video.
    followed = [path for path in provider.requested if path != "/video.mp4"]
    assert sorted(followed) == sorted(2 * (first + [f"/to/{number}" for number in range(len(FORBIDDEN_REDIRECTS))]))


async def stays_open_and_is_archived_later(
    provider: HostileProvider, stored: StoredBlocks, key: str, urls: list[str]
) -> None:
    """One paid video for each result URL: the run fails, the collector fails, and then the provider fixes the URLs."""
    provider.results = {f"Dunes {number}": [url] for number, url in enumerate(urls)}
    rows = [{"id": f"{number:02}", "prompt": prompt} for number, prompt in enumerate(provider.results)]
    keys = [f"{key}-{row['id']}" for row in rows]
    with pytest.MonkeyPatch.context() as patched:  # after three such videos in a row, a batch submits no more
        patched.setattr("flows.batch.stop.NOT_ARCHIVED_IN_A_ROW", len(rows) + 1)
        summary = await run_batch(stored, key, rows)
    assert {row.state for row in summary.rows} == {"succeeded"}
    assert all(row.problem for row in summary.rows)
    assert "hunter2" not in summary.model_dump_json()
    with pytest.raises(CollectionError, match=f"{len(urls)} of {len(urls)}") as caught:
        await collect_videos(api=stored.name, archive=stored.name)
    assert "hunter2" not in str(caught.value)
    assert await states(stored, keys) == {State.SUCCEEDED}
    assert await open_keys(stored) == keys
    assert await names(stored, "videos/") == []
    provider.results = {prompt: [f"{provider.url}/video.mp4"] for prompt in provider.results}
    stored.api.allow_private_hosts = True
    await stored.api.save(stored.name, overwrite=True)
    await collect_videos(api=stored.name, archive=stored.name)
    assert await states(stored, keys) == {State.ARCHIVED}
    assert await open_keys(stored) == []
    assert len([name for name in await names(stored, "videos/") if name.endswith("/video.mp4")]) == len(urls)
    assert sorted(provider.posts) == sorted(provider.results)  # each only once, in all these runs


async def names(stored: StoredBlocks, prefix: str) -> list[str]:
    async with aclosing(stored.archive.store()) as store:
        return await store.names(prefix)


async def test_valid_result_url_among_forbidden_ones_is_archived(
    provider: HostileProvider, archive: VideoArchive, sandbox: SandboxServer, key: str
) -> None:
    stored = await stored_for(provider, archive, sandbox, allow_private_hosts=True)
    good = f"{provider.url}/video.mp4"
    provider.results = {"Dunes": ["file:///etc/passwd", "http://169.254.169.254/v.mp4", good, "data:video/mp4,x"]}
    generation = await stored.generate(VideoRequest(prompt="Dunes"), key=key)
    assert generation.state is State.ARCHIVED
    assert generation.video is not None
    assert generation.video.name.endswith("/video-3.mp4")
    assert sum("was left out" in warning for warning in generation.warnings) == 3
    assert (provider.posts, provider.requested) == (["Dunes"], ["/video.mp4"])
    assert await open_keys(stored) == []


async def test_forbidden_result_error_says_what_to_do(
    provider: HostileProvider, archive: VideoArchive, sandbox: SandboxServer, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    stored = await stored_for(provider, archive, sandbox, allow_private_hosts=False)
    provider.results = {"Dunes": [f"{provider.url}/video.mp4?X-Amz-Signature=hunter2"]}
    with pytest.raises(ForbiddenUrlError, match=r"127\.0\.0\.1 is not public.*allow_private_hosts"):
        await stored.generate(VideoRequest(prompt="Dunes"), key=key)
    assert provider.requested == []
    assert f"{key} is paid, as task task_1, and not archived yet. Nothing is lost" in caplog.text
    assert "hunter2" not in caplog.text


# --- Prompts

PROMPTS: Final = [
    *(text for text in NASTY if text.strip()),
    "[link=http://evil.example]here[/link] [/nothing] [red",
    "%s %d %(levelname)s {0} ${HOME} $(id) `id` ; rm -rf / &",
    "{{ 7 * 7 }} {% for a in ().__class__.__mro__ %}{{ a }}{% endfor %}",
    '{"__prefect_kind": "jinja", "template": "{{ 7 * 7 }}"}',
    "2026-03-01 12:00:00 INFO Archived\nERROR kite: a forged line\r\n    | ERROR",
    "'; DROP TABLE flow_run; --",
    "=cmd|' /C calc'!A0",
    "@SUM(1+1)*cmd|' /C calc'!A0",
    "\ufeff\u200b\u200d\u2060 invisible \U000e0041",
    "\U0001f468\u200d\U0001f680 e\u0301 \u0645\u0631\u062d\u0628\u0627 " + "Z\u0351" * 50,
    "</textarea></script><script>fetch('//evil.example')</script>",
    "x" * 10_000,
]


async def test_prompts_reach_provider_and_are_shown_as_plain_text(
    stored: StoredBlocks, sandbox: SandboxServer, prefect_server: PrefectServer, key: str, tmp_path: Path
) -> None:
    """Only line ends are normalized, so the same text is the same video, whatever program saved the calendar."""
    prompts = [line_ends(prompt) for prompt in dict.fromkeys(PROMPTS)]
    calendar = tmp_path / "plan.jsonl"
    calendar.write_text(
        "".join(
            json.dumps({"id": f"{number:02}", "prompt": prompt}) + "\n"
            for number, prompt in enumerate(dict.fromkeys(PROMPTS))
        )
    )
    summary = await generate_batch(
        calendar=str(calendar), key=key, api=stored.name, archive=stored.name, submissions_per_second=100
    )
    assert isinstance(summary, BatchSummary)
    assert {row.state for row in summary.rows} == {"archived"}

    received = [json.loads(request.body)["input"]["prompt"] for request in sandbox.record.submits()]
    assert sorted(received) == sorted(prompts)

    keys = [row.key for row in summary.rows]
    await assert_no_injected_markdown(keys)
    # Again, with another prompt under each key: the errors show the first one.
    calendar.write_text(
        "".join(json.dumps({"id": f"{number:02}", "prompt": "x"}) + "\n" for number in range(len(keys)))
    )
    with pytest.raises(BatchFailedError) as caught:
        await generate_batch(calendar=str(calendar), key=key, api=stored.name, archive=stored.name)
    assert re.findall(CONTROLS, str(caught.value).replace("\n", "")) == []
    assert len(sandbox.record.submits()) == len(prompts)
    for text in await reported_by_prefect(prefect_server, key, keys):
        assert re.findall(CONTROLS, text.replace("\n", "")) == [], text
        assert "forged line\r" not in text

    for number, name in enumerate(keys):
        events = await read_events(prefect_server, name, "sora.generation.archived")
        for event in events:
            if event["event"] == "sora.generation.archived":
                assert event["payload"]["request"]["prompt"] == prompts[number][:200].replace("\0", "\ufffd")
                assert event["resource"]["prefect.resource.name"] == name


async def assert_no_injected_markdown(keys: list[str]) -> None:
    """The artifacts of all keys have the same headings, lines, cells and images, and no links."""
    async with get_client() as client:
        wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[artifact_key(key) for key in keys]))
        found = await client.read_artifacts(artifact_filter=wanted)
    assert {item.key for item in found} == {artifact_key(key) for key in keys}
    shapes = {tuple(shape(re.sub(r"base64,[^)]*", "base64,x", str(item.data)))) for item in found}
    assert len(shapes) == 1
    assert {"html_inline", "html_block", "link_open"} & set(*shapes) == set()
    assert set(*shapes) >= {"image", "table_open", "blockquote_open"}
    for item in found:
        assert re.findall(CONTROLS, str(item.data).replace("\n", "")) == []
        tokens = inline(RENDERER.parse(str(item.data)))
        assert not any("evil.example" in str(token.attrs) for token in tokens)


async def reported_by_prefect(server: PrefectServer, key: str, keys: list[str]) -> list[str]:
    """The names of the batch's runs and of their tasks, the messages of their states, and every line of their logs."""
    async with PrefectHttpxAsyncClient(base_url=server.api_url, timeout=30) as http:
        flows = {"flow_runs": {"name": {"any_": [f"generate batch {key}"]}}}
        runs = (await http.post("/flow_runs/filter", json=flows)).json()
        assert len(runs) == 2
        ids = [run["id"] for run in runs]
        await asyncio.sleep(3)  # logs and task runs are written in the background
        tasks, logs = [], []
        for offset in range(0, 2_000, 200):
            page = {"flow_runs": {"id": {"any_": ids}}, "limit": 200, "offset": offset}
            tasks += (await http.post("/task_runs/filter", json=page)).json()
            page = {"logs": {"flow_run_id": {"any_": ids}}, "limit": 200, "offset": offset}
            logs += (await http.post("/logs/filter", json=page)).json()
    assert {task["name"].partition(" ")[2] for task in tasks} == set(keys)
    assert len(logs) > len(keys)
    states = [str(run["state"]["message"]) for run in (*runs, *tasks) if run["state"]]
    return [*(run["name"] for run in (*runs, *tasks)), *states, *(log["message"] for log in logs)]


def test_command_line_shows_prompts_without_control_characters(
    sora: Sora, sandbox: SandboxServer, stored: StoredBlocks, key: str
) -> None:
    blocks = ["--api", stored.name, "--archive", stored.name]
    prompt = "".join(f"{text} " for text in PROMPTS if "\0" not in text and len(text) < 1_000)
    generated = sora("generate", prompt, "--key", key, "--no-wait", *blocks)
    assert generated.code == 0, generated.all
    outputs = [
        generated.all,
        sora("show", key, "--archive", stored.name).all,
        sora("list", "--archive", stored.name).all,
        sora("generate", "another prompt", "--key", key, *blocks).all,
    ]
    for text in outputs:
        assert re.findall(CONTROLS, text.replace("\n", "")) == []
        assert "Traceback" not in text
    assert [json.loads(request.body)["input"]["prompt"] for request in sandbox.record.submits()] == [prompt]
