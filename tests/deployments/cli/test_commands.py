"""`sora` as a user runs it: separate processes against a real Prefect server, a real MinIO and the sandbox."""

import hashlib
import json
from decimal import Decimal

import httpx
import pytest
from PIL import Image

from blocks import VideoArchive
from deployments.local.prefect_server import PrefectServer
from deployments.sandbox import Fault, SandboxServer
from tests.deployments.cli.sora import Sora, one_line
from tests.flows.conftest import StoredBlocks, store_blocks
from tests.support import make_api, minio_client


def test_doctor_reports_what_is_wrong_and_how_to_fix_it(sora: Sora, blocks: list[str], sandbox: SandboxServer) -> None:
    healthy = sora("doctor", *blocks)
    assert healthy.code == 0, healthy.out
    lines = {line[2:24].strip(): line[0] for line in healthy.out.splitlines()}
    assert lines["prefect server"] == lines["archive"] == lines["api"] == lines["result route"] == "✓"
    assert {"worker", "deployments"} < set(lines)  # other tests share this server: they may have started a worker
    broken = sora("doctor", "--json", "--api", "nowhere", *blocks[2:])
    assert broken.code == 1
    assert "1 problem to fix" in broken.err
    (wrong,) = [item for item in json.loads(broken.out) if item["outcome"] == "error"]
    assert wrong["name"] == "block apixo-api/nowhere"
    assert sandbox.record.submits() == []


def test_generate_archives_one_video_that_show_prints_links_and_saves(
    sora: Sora, blocks: list[str], stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    command = ["generate", "A red kite over dunes", "--key", key, *blocks]

    dry = sora(*command, "--dry-run", "--image", f"{sandbox.base_url}/samples/harbor.jpg")
    assert dry.code == 0, dry.err
    assert "JPEG" in dry.out
    assert key in dry.out
    assert "unknown: the block has no price_per_second" in dry.out
    lines = {line[:10].strip() for line in dry.out.splitlines()}
    assert {"api", "result", "clock", "balance", "image", "callbacks", "disk", "archive"} < lines
    assert "10000.00 USD" in dry.out
    assert "nothing was paid" in dry.out
    assert sandbox.record.submits() == []
    assert sora("show", key, "--archive", stored.name).code == 1

    archived = sora(*command, "--verbose")
    assert archived.code == 0, archived.err
    row = archived.out.splitlines()[1].split()
    assert row[:3] == [key, "archived", f"{stored.archive.bucket}/videos/{row[2].split('videos/', 1)[1]}"]
    assert f"sora show {key} --link" in archived.err
    assert len(sandbox.record.submits()) == 1

    again = sora(*command)
    assert again.code == 0
    assert again.out == archived.out
    assert len(sandbox.record.submits()) == 1

    renamed = ["generate", "A red kite over dunes", "--key", f"{key}-renamed", *blocks]
    dry = sora(*renamed, "--dry-run")
    assert f"requests the same video as {key}" in dry.out
    for more in (["--dry-run"], []):
        assert "Duplicates are rejected" in one_line(sora(*renamed, "--refuse-duplicates", *more), 1)
    assert len(sandbox.record.submits()) == 1

    reported = sora("show", key, "--archive", stored.name, "--json", "--save", "kite[final].mp4")
    assert reported.code == 0, reported.err
    record = json.loads(reported.out)
    video = next(item for item in record["objects"] if item["kind"] == "video")
    saved = (sora.folder / "kite[final].mp4").read_bytes()
    assert hashlib.sha256(saved).hexdigest() == video["sha256"] == row[-1]
    assert "Saved kite[final].mp4" in reported.err

    shown = sora("show", key, "--archive", stored.name)
    for part in (key, "archived", "A red kite over dunes", record["attempts"][0]["task_id"], video["name"]):
        assert part in shown.out

    linked = sora("show", key, "--archive", stored.name, "--link")
    assert linked.code == 0
    downloaded = httpx.get(linked.out.strip())
    assert downloaded.status_code == 200
    assert downloaded.content == saved

    rejected = one_line(sora("show", key, "--archive", stored.name, "--save", "."), 1)
    assert "cannot be written" in rejected

    minio_client(stored.archive).remove_object(stored.archive.bucket, video["name"])
    for option in ("--link", "--save=again.mp4"):
        gone = one_line(sora("show", key, "--archive", stored.name, option), 1)
        assert f"{video['name']} is no longer in the bucket {stored.archive.bucket}" in gone
    assert not (sora.folder / "again.mp4").exists()

    conflict = one_line(sora("generate", "Another prompt", "--key", key, *blocks), 1)
    assert "belongs to another request" in conflict
    assert len(sandbox.record.submits()) == 1


def test_start_image_file_is_uploaded_and_rerun_pays_nothing(
    sora: Sora, blocks: list[str], sandbox: SandboxServer, key: str
) -> None:
    Image.new("RGB", (64, 36), "teal").save(sora.folder / "start.png")
    command = ["generate", "A red kite over dunes", "--key", key, "--image", "./start.png", *blocks]
    dry = sora(*command, "--dry-run")
    assert "PNG, 64 x 36" in dry.out, dry.all
    for _ in range(2):
        result = sora(*command)
        assert result.code == 0, result.err
    assert len(sandbox.record.submits()) == 1
    assert "X-Amz" not in dry.all + result.all + sora("show", key, *blocks[2:]).all
    assert "nothing.jpg is not a file on this machine" in one_line(sora(*command[:5], "nothing.jpg", *blocks), 1)


def test_no_wait_submits_and_rerun_archives(
    sora: Sora, blocks: list[str], stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    command = ["generate", "A paper lantern", "--portrait", "--key", key, *blocks]
    sent = sora(*command, "--no-wait")
    assert sent.code == 0, sent.err
    (paid,) = sandbox.record.submits()
    assert f"{key}" in sent.out
    assert "submitted" in sent.out
    assert f"Submitted as task {paid.task_id}" in sent.err
    early = one_line(sora("show", key, "--archive", stored.name, "--link"), 1)
    assert "there is no video yet" in early
    done = sora(*command)
    assert done.code == 0, done.err
    assert "archived" in done.out
    assert len(sandbox.record.submits()) == 1


@pytest.mark.parametrize("accepted", [True, False])
def test_unclear_payment_is_resolved_manually(
    accepted: bool, sora: Sora, blocks: list[str], stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="reset_after" if accepted else "reset_before"))
    command = ["generate", "A fox in fresh snow", "--key", key, *blocks]
    unclear = one_line(sora(*command), 1)
    assert f"It is unknown whether {key} was paid" in unclear
    assert f"sora resolve {key} --task-id TASK_ID" in unclear
    assert f"sora resolve {key} --resubmit" in unclear
    assert "unconfirmed" in sora("show", key, "--archive", stored.name).out
    assert len(sandbox.record.submits()) == 1

    if accepted:
        (paid,) = sandbox.record.charged()
        unknown = one_line(sora("resolve", key, "--task-id", "task_000000000000", *blocks), 1)
        assert "APIXO does not know task task_000000000000" in unknown
        done = sora("resolve", key, "--task-id", paid.task_id or "", *blocks)
    else:
        not_confirmed = sora("resolve", key, "--resubmit", *blocks)  # standard input is closed, so nothing confirms it
        assert not_confirmed.code == 1
        assert "unconfirmed" in not_confirmed.out
        assert f"may pay for {key} once more" in not_confirmed.err
        assert len(sandbox.record.submits()) == 1
        done = sora("resolve", key, "--resubmit", "--yes", *blocks)
    assert done.code == 0, done.err
    assert "archived" in done.out
    assert len(sandbox.record.submits()) == (1 if accepted else 2)
    assert len(sandbox.record.charged()) == 1


def test_open_generations_are_listed_and_collected(
    sora: Sora, blocks: list[str], stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="reset_after", prompt_contains="lost"))
    sent = sora.start("generate", "A paper lantern", "--key", f"{key}-sent", "--no-wait", *blocks)
    lost = sora.start("generate", "lost", "--key", f"{key}-lost", *blocks)
    assert (sora.end(sent).code, sora.end(lost).code) == (0, 1)
    here = ["--archive", stored.name]
    still_open, unclear = sora("list", "--open", *here), sora("list", "--unconfirmed", *here)
    assert {line.split()[0] for line in still_open.out.splitlines()[1:]} == {f"{key}-sent", f"{key}-lost"}
    assert [line.split()[0] for line in unclear.out.splitlines()[1:]] == [f"{key}-lost"]
    collected = sora("collect", *blocks)
    assert collected.code == 0, collected.err
    assert f"sora resolve {key}-lost --task-id TASK_ID" in " ".join(collected.out.split())
    all_records = sora("list", *here)
    assert {line.split()[1] for line in all_records.out.splitlines()[1:]} == {"archived", "unconfirmed"}
    assert len(sandbox.record.submits()) == 2


async def test_costs_shows_spending_by_group_and_what_is_left_under_ceilings(
    sora: Sora, sandbox: SandboxServer, archive: VideoArchive, prefect_server: PrefectServer, key: str
) -> None:
    limited = make_api(sandbox, price_per_second=Decimal("0.5"), currency="USD", max_spend_per_day=Decimal(3))
    stored = await store_blocks(limited, archive)
    blocks = ["--api", stored.name, "--archive", stored.name]
    assert sora("generate", "A paper lantern", "--key", key, "--tag", "autumn", *blocks).code == 0
    rejected = sora("generate", "A paper boat", *blocks)
    assert "max_spend_per_day is 3 USD" in one_line(rejected, 1)
    shown = sora("costs", "--by", "tag", *blocks)
    assert shown.code == 0, shown.err
    lines = [line.split() for line in shown.out.splitlines()]
    assert lines[1] == ["autumn", "1", "2.0", "0", "0", "0", "2.0", "USD"]
    assert "max_spend_per_day 3: 2.0 spent, 0 unclear, 0 reserved by runs, 1.0 left" in shown.out
    document = json.loads(sora("costs", "--json", "--month", "2020-02", *blocks).out)
    assert document == {"month": "2020-02", "by": "model", "rows": [], "totals": [], "ceilings": []}
    assert "is not a month" in one_line(sora("costs", "--month", "2020-13", *blocks), 1)
