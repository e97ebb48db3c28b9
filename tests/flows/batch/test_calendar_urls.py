"""Where a calendar may be stored: on this machine, or in any bucket of the store."""

import os
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import pytest
from minio import MinioAdmin
from minio.credentials.providers import StaticProvider
from pydantic import SecretStr

from blocks import VideoArchive
from blocks.store_errors import StoreUnavailableError
from deployments.local.store_server import ObjectStoreServer
from flows.batch.calendar_rows import Row
from flows.batch.calendars import MAX_CALENDAR_BYTES, read_calendar
from flows.batch.tables import CalendarError
from tests.support import unique

from .calendar_text import KITE


async def test_a_local_file_is_read(tmp_path: Path, archive: VideoArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "März.csv").write_text("prompt\nA kite", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for location in (str(tmp_path / "März.csv"), "März.csv", f" {tmp_path}/./März.csv\n"):
        assert await read_calendar(location, archive) == [Row(line=2, item=KITE)]


@contextmanager
def without_root_rights() -> Iterator[None]:
    """Runs the block as another user if this process is root, which may read every file."""
    uid = os.geteuid()
    if uid == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        if uid == 0:
            os.seteuid(uid)


async def test_unreadable_local_file_raises_error_with_reason(tmp_path: Path, archive: VideoArchive) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    (tmp_path / "dangling.csv").symlink_to("nowhere.csv")
    with (tmp_path / "large.csv").open("wb") as large:
        large.truncate(MAX_CALENDAR_BYTES + 1)
    for name, reason in {
        "nothing.csv": "is not on the machine that runs the flow",
        "nowhere/plan.csv": "is not on the machine",
        "file/plan.csv": "is not on the machine",
        "dangling.csv": "is not on the machine",
        "folder.csv": "is a folder",
        "pipe.csv": "is not a regular file",
        "loop.csv": "cannot be read: ",
        "large.csv": "is larger than 50,000,000 bytes",
        "file": r"must be a \.csv",
        "a\0b.csv": "cannot be read: that is not a file name",
        "a\ud800b.csv": "cannot be read: that is not a file name",
        "x" * 300 + ".csv": "cannot be read: File name too long",
    }.items():
        with pytest.raises(CalendarError, match=reason) as raised:
            await read_calendar(f"{tmp_path}/{name}", archive)
        str(raised.value).encode()  # it can be logged: no lone surrogates
        assert len(str(raised.value)) < 400


async def test_local_file_without_read_permission_raises_error(tmp_path: Path, archive: VideoArchive) -> None:
    path = tmp_path / "plan.csv"
    path.write_text("prompt\nA kite")
    path.chmod(0)
    with without_root_rights(), pytest.raises(CalendarError, match="may not be read by the user"):
        await read_calendar(str(path), archive)


async def test_object_is_read_from_any_bucket_or_rejected_with_reason(archive: VideoArchive) -> None:
    plans = archive.model_copy(update={"bucket": unique("plans")})
    async with aclosing(plans.store()) as store:
        await store.create_bucket()
        await store.put("2026/märz & april?#.csv", b"prompt\nA kite")
        await store.put("empty.csv", b"")
        await store.put("large.jsonl", b" " * (MAX_CALENDAR_BYTES + 1))
    for scheme in ("s3", "S3"):
        location = f"{scheme}://{plans.bucket}/2026/märz & april?#.csv"
        assert await read_calendar(location, archive) == [Row(line=2, item=KITE)]
    assert archive.bucket != plans.bucket
    for location, reason in {
        f"s3://{plans.bucket}/nothing.csv": f"does not exist: the bucket {plans.bucket} has no such object",
        f"s3://{plans.bucket}-gone/plan.csv": f"does not exist: the store has no bucket {plans.bucket}-gone",
        f"s3://{plans.bucket}/empty.csv": "is empty",
        f"s3://{plans.bucket}/large.jsonl": "is larger than 50,000,000 bytes",
        f"s3://{plans.bucket}/plan.xls": r"must be a \.csv",
        f"s3://{plans.bucket}/{'x' * 1_100}.csv": "a name that is not valid for an object",
        f"s3://{plans.bucket}/../plan.csv": "a name that is not valid for an object",
        f"s3://{plans.bucket}/a\ud800.csv": "a name that is not valid for an object",
    }.items():
        with pytest.raises(CalendarError, match=reason) as raised:
            await read_calendar(location, archive)
        assert "sora setup" not in str(raised.value)
        assert archive.secret_key.get_secret_value() not in str(raised.value)
        assert len(str(raised.value)) < 600


@pytest.mark.parametrize(
    "location",
    [
        "https://me:hunter2@example.com/plan.csv",
        "https://store.example/plan.csv?X-Amz-Signature=hunter2",
        "file:///hunter2/plan.csv",
        "s3://key:hunter2@plans/plan.csv",
        "s3://hunter2!/plan.csv",
        "s3://hunter2",
        "s3://hunter2/",
        "s3:///hunter2.csv",
        "s3://",
        "://",
    ],
)
async def test_invalid_location_is_rejected_without_repeating_it(location: str, archive: VideoArchive) -> None:
    with pytest.raises(CalendarError, match=r"must be .*s3://") as raised:
        await read_calendar(location, archive)
    assert "hunter2" not in f"{raised.value} {raised.value.__cause__}"


async def test_object_without_read_permission_raises_error(archive: VideoArchive, minio: ObjectStoreServer) -> None:
    if minio.kind != "minio":
        pytest.skip("only MinIO has users and permissions")
    allowed = {"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": ["arn:aws:s3:::elsewhere/*"]}
    admin = MinioAdmin(
        endpoint=minio.endpoint, credentials=StaticProvider(minio.access_key, minio.secret_key), secure=False
    )
    access_key = unique("r")
    admin.add_service_account(
        access_key=access_key, secret_key="reader-51gned", policy={"Version": "2012-10-17", "Statement": [allowed]}
    )
    reader = archive.model_copy(update={"access_key": access_key, "secret_key": SecretStr("reader-51gned")})
    location = f"s3://{archive.bucket}/plan.csv"
    with pytest.raises(CalendarError, match="has no right to read it"):
        await read_calendar(location, reader)
    wrong = archive.model_copy(update={"secret_key": SecretStr("wrong-51gned")})
    with pytest.raises(CalendarError, match=r"cannot be read.*SignatureDoesNotMatch.*secret key") as raised:
        await read_calendar(location, wrong)
    assert "51gned" not in str(raised.value)


async def test_unavailable_store_raises_store_unavailable_error(archive: VideoArchive) -> None:
    unavailable = archive.model_copy(update={"endpoint": "127.0.0.1:9"})
    with pytest.raises(StoreUnavailableError):
        await read_calendar("s3://plans/plan.csv", unavailable)
