"""The user's own images in the whole flow: what the provider receives, and what is recorded."""

import hashlib
import io
import json
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from apixo import VideoRequest
from deployments.sandbox import SandboxServer
from flows.batch.calendar_rows import BadRow, Row
from flows.batch.calendars import read_calendar
from flows.batch.row_images import LocalImages
from flows.media.media_errors import ImageRefusedError, MediaError
from flows.media.own_images import read_own_image, upload
from flows.record.pipeline_errors import KeyConflictError
from tests.flows.conftest import StoredBlocks
from tests.support.events import Sent


def make_image(path: Path, color: str = "teal") -> Path:
    Image.new("RGB", (64, 36), color).save(path)
    return path


async def upload_image(stored: StoredBlocks, path: Path) -> str:
    image = read_own_image(path, shown=path.name, max_bytes=10_000_000, fit=False)
    async with aclosing(stored.archive.store()) as store:
        await upload(image, store)
    return f"s3://{stored.archive.bucket}/{image.object_name}"


async def all_objects(stored: StoredBlocks) -> dict[str, bytes]:
    async with aclosing(stored.archive.store()) as store:
        return {name: (await store.read(name, max_bytes=10_000_000)) or b"" for name in await store.names("")}


def images_sent(sandbox: SandboxServer) -> list[list[str]]:
    return [json.loads(item.body)["input"]["image_urls"] for item in sandbox.record.submits()]


async def test_signed_url_is_sent_to_the_provider_and_appears_nowhere_else(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, tmp_path: Path, sent: Sent, caplog: pytest.LogCaptureFixture
) -> None:
    url = await upload_image(stored, make_image(tmp_path / "a.png"))
    made = await stored.generate(VideoRequest(prompt="Dunes", image_urls=[url]), key=key)
    [[signed_url]] = images_sent(sandbox)
    assert "X-Amz-Signature=" in signed_url
    assert made.request.image_urls == [url]
    for name, data in (await all_objects(stored)).items():
        assert b"X-Amz" not in data, name
    assert "X-Amz" not in caplog.text + str(sent)


async def test_same_image_continues_the_key_and_another_image_is_a_key_conflict(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, tmp_path: Path
) -> None:
    url = await upload_image(stored, make_image(tmp_path / "a.png"))
    request = VideoRequest(prompt="Dunes", image_urls=[url])
    first = await stored.generate(request, key=key)
    again = await stored.generate(request, key=key)
    assert again.task_id == first.task_id
    other = await upload_image(stored, make_image(tmp_path / "b.png", "red"))
    with pytest.raises(KeyConflictError):
        await stored.generate(VideoRequest(prompt="Dunes", image_urls=[other]), key=key)
    assert len(images_sent(sandbox)) == 1


async def test_store_that_the_provider_cannot_reach_raises_error_before_paying(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, tmp_path: Path
) -> None:
    stored.api.allow_private_hosts = False
    await stored.api.save(stored.name, overwrite=True)
    url = await upload_image(stored, make_image(tmp_path / "a.png"))
    with pytest.raises(MediaError, match=r"APIXO cannot fetch s3://.*127\.0\.0\.1.*public_url") as refused:
        await stored.generate(VideoRequest(prompt="Dunes", image_urls=[url]), key=key)
    assert "X-Amz" not in str(refused.value)
    assert sandbox.record.submits() == []


async def test_image_missing_from_the_store_is_rejected_before_paying(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    url = f"s3://{stored.archive.bucket}/images/none.jpg"
    with pytest.raises(MediaError, match=r"APIXO cannot use s3://.*HTTP 404"):
        await stored.generate(VideoRequest(prompt="Dunes", image_urls=[url]), key=key)
    assert sandbox.record.submits() == []


async def rows_of(stored: StoredBlocks, where: str, **options: Any) -> list[Row | BadRow]:
    return await read_calendar(where, stored.archive, **options)


async def test_image_paths_are_relative_to_the_calendar(stored: StoredBlocks, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    image = make_image(tmp_path / "photos" / "a.png")
    (tmp_path / "b.png").write_bytes(b"GIF89a")
    calendar = tmp_path / "plan.csv"
    calendar.write_text("id,prompt,image_urls\na,Dunes,photos/a.png\nb,Dunes,b.png\nc,Dunes,nothing.jpg\n")
    good, bad, missing = await rows_of(stored, str(calendar))
    name = f"images/{hashlib.sha256(image.read_bytes()).hexdigest()}.png"
    assert isinstance(good, Row)
    assert good.item.image_urls == [f"s3://{stored.archive.bucket}/{name}"]
    assert (await all_objects(stored))[name] == image.read_bytes()
    assert isinstance(bad, BadRow)
    assert [(problem.field, "is a GIF" in problem.message) for problem in bad.problems] == [("image_urls.0", True)]
    assert isinstance(missing, BadRow)
    assert "not a file on this machine" in missing.problems[0].message


async def test_image_that_changes_while_its_calendar_is_read_is_an_error(stored: StoredBlocks, tmp_path: Path) -> None:
    """Otherwise the row would name an image that the bucket does not have."""
    image = make_image(tmp_path / "a.png")
    local = LocalImages(tmp_path / "plan.csv", stored.archive.bucket, fit=False)
    local.find("a.png")
    Image.new("RGB", (64, 36), "red").save(image)
    async with aclosing(stored.archive.store()) as store:
        with pytest.raises(ImageRefusedError, match=r"a\.png was changed while the calendar was read"):
            await local.upload(store)
    assert [name for name in await all_objects(stored) if name.startswith("images/")] == []


async def test_image_paths_in_a_stored_calendar_refer_to_the_bucket_not_this_machine(
    stored: StoredBlocks, tmp_path: Path
) -> None:
    lines = [{"id": f"v{n}", "prompt": "Dunes", "image_urls": [path]} for n, path in enumerate(
        ["a.jpg", "../shared/a.jpg", str(make_image(tmp_path / "here.png")), "../../a.jpg"]
    )]  # fmt: skip
    async with aclosing(stored.archive.store()) as store:
        await store.put("plans/march/plan.jsonl", "\n".join(map(json.dumps, lines)).encode())
    rows = await rows_of(stored, f"s3://{stored.archive.bucket}/plans/march/plan.jsonl")
    found = [row.item.image_urls if isinstance(row, Row) else row.problems[0].message for row in rows]
    bucket = f"s3://{stored.archive.bucket}"
    assert found == [
        [f"{bucket}/plans/march/a.jpg"],
        [f"{bucket}/plans/shared/a.jpg"],
        [f"{bucket}/{str(tmp_path).lstrip('/')}/here.png"],
        [f"{bucket}/a.jpg"],
    ]


async def test_sideways_images_are_reported_and_rotated_with_fit_images(stored: StoredBlocks, tmp_path: Path) -> None:
    metadata = Image.Exif()
    metadata[0x0112] = 6
    Image.new("RGB", (64, 36)).save(tmp_path / "a.jpg", exif=metadata)
    calendar = tmp_path / "plan.csv"
    calendar.write_text("prompt,image_urls\nDunes,a.jpg\n")
    reports: list[str] = []
    await rows_of(stored, str(calendar), report=reports.append)
    assert any("stored sideways" in text for text in reports)
    [row] = await rows_of(stored, str(calendar), fit_images=True)
    assert isinstance(row, Row)
    name = row.item.image_urls[0].split("/", 3)[3]
    assert Image.open(io.BytesIO((await all_objects(stored))[name])).size == (36, 64)
