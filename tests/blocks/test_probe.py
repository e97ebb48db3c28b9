"""What a store must prove before anything is paid for, and what is reported about one that cannot."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

import blocks.probe
from blocks.object_store import PROBE, ObjectStore
from blocks.probe import (
    LARGE_BYTES,
    RACED,
    _prove_change,
    ensure_ready,
    problems,
    prove,
    prove_large_upload,
    prove_race,
)
from blocks.store_errors import StoreRefusedError, StoreUnavailableError, StoreUnfitError

from .conftest import OpenStore, archive
from .wire import http, listening, s3_error

LAST_MODIFIED = "Sun, 01 Mar 2026 12:00:00 GMT"


def unchanged(value: str) -> str:
    return value


@dataclass
class SmallStore:
    """An S3 store with one bucket, in memory. The first fields are what it, or a proxy in front of it, does wrong."""

    enforces: tuple[str, ...] = ("if-none-match", "if-match")
    sent_etag: Callable[[str], str] = unchanged
    sent_data: Callable[[bytes], bytes] = bytes
    max_bytes: int = 1_000_000_000
    ahead_seconds: float = 0
    lists: bool = True
    deletes: bool = True
    rejects: Callable[[str, dict[str, str]], bytes | None] = lambda method, headers: None
    racy: str = ""
    """The condition that is checked some time before the write happens."""
    busy: bytes = b""
    """The answer to two out of three writes."""
    busy_at_first: list[bytes] = field(default_factory=list)
    """The answers to its first requests."""
    objects: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    parts: bytes = b""
    modified: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    version: int = 0
    writes: int = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            headers = {
                name.lower(): value for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:])
            }
            body = await reader.readexactly(int(headers.get("content-length") or 0))
            method, target, _ = head.split(" ", 2)
            name = target.partition("?")[0].split("/", 2)[-1]
            self.requests.append(f"{method} {name}")
            writer.write(await self.answer(method, target, name, headers, body))
            await writer.drain()

    async def answer(self, method: str, target: str, name: str, headers: dict[str, str], body: bytes) -> bytes:
        await asyncio.sleep(0)  # lets other requests interleave
        if self.busy_at_first:
            return self.busy_at_first.pop()
        if method in ("GET", "HEAD"):
            found = self._listing(target) if "list-type" in target else self._get(name)
            return found if method == "GET" else found.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        if method == "DELETE":
            if self.deletes:
                self.objects.pop(name, None)
            return http(204)
        rejection = self.rejects(method, headers)
        if rejection or len(body) > self.max_bytes:
            return rejection or http(413, b"<html><head><title>413 Request Entity Too Large</title></head></html>")
        in_parts = "uploads" in target or "uploadId=" in target
        self.writes += not in_parts
        if self.busy and self.writes % 3:
            return self.busy
        return await (self._part(method, target, name, headers, body) if in_parts else self._put(name, headers, body))

    def _get(self, name: str) -> bytes:
        if name not in self.objects:
            return s3_error(404, "NoSuchKey")
        data, version = self.objects[name]
        date = datetime.now(UTC) + timedelta(seconds=self.ahead_seconds)
        extra = {"date": format_datetime(date, usegmt=True), "last-modified": LAST_MODIFIED}
        etag = self.sent_etag(f'"{version}"')
        return http(200, self.sent_data(data), **extra, **({"etag": etag} if etag else {}))

    async def _put(self, name: str, headers: dict[str, str], body: bytes) -> bytes:
        for condition in ("if-none-match", "if-match"):
            if condition not in headers or condition not in self.enforces:
                continue
            current = f'"{self.objects[name][1]}"' if name in self.objects else None
            if current is not None if condition == "if-none-match" else headers[condition] != current:
                return s3_error(412, "PreconditionFailed")
            if condition == self.racy:
                await asyncio.sleep(0.05)
        self.version += 1
        source = headers.get("x-amz-copy-source", "").strip("/").partition("/")[2]
        self.objects[name] = (self.objects[source][0] if source else body, self.version)
        return http(200, b'<R><ETag>"1"</ETag></R>' if source else b"", etag=f'"{self.version}"')

    async def _part(self, method: str, target: str, name: str, headers: dict[str, str], body: bytes) -> bytes:
        """An upload in parts, which is also how an object is copied."""
        if "uploads" in target:
            self.parts = b""
            return http(200, f"<R><Bucket>b</Bucket><Key>{name}</Key><UploadId>1</UploadId></R>".encode())
        if method == "POST":
            put = await self._put(name, headers, self.parts)
            whole = f'<R><Bucket>b</Bucket><Key>{name}</Key><ETag>"{self.version}"</ETag></R>'.encode()
            return http(200, whole) if b" 200 " in put[:16] else put
        source = headers.get("x-amz-copy-source", "").strip("/").partition("/")[2]
        self.parts += self.objects[source][0] if source else body
        return http(200, b'<R><ETag>"p"</ETag></R>', etag='"p"')

    def _listing(self, target: str) -> bytes:
        prefix = re.search(r"prefix=([^&]*)", target)
        wanted = prefix[1].replace("%2F", "/") if prefix and self.lists else "-"
        now = datetime.now(UTC).isoformat()[:19] + "Z"
        items = "".join(
            f"<Contents><Key>{name}</Key><LastModified>{self.modified.get(name, now)}</LastModified>"
            f"<Size>{len(data)}</Size><ETag>&quot;1&quot;</ETag></Contents>"
            for name, (data, _) in self.objects.items()
            if name.startswith(wanted)
        )
        return http(200, f"<ListBucketResult><Name>b</Name>{items}</ListBucketResult>".encode())


Check = Callable[[ObjectStore], Awaitable[None]]


async def all_checks(store: ObjectStore) -> None:
    for error in await problems(store):
        raise error


@pytest.mark.parametrize(
    "small",
    [SmallStore(), SmallStore(ahead_seconds=50), SmallStore(ahead_seconds=-50)],
    ids=["in sync", "ahead", "behind"],
)
async def test_good_store_passes_and_only_the_probes_remain(open_store: OpenStore, small: SmallStore) -> None:
    async with listening(small.handle) as endpoint:
        await all_checks(open_store(archive(endpoint)))
    assert set(small.objects) == {PROBE, RACED}


UNFIT: list[tuple[str, SmallStore, Check, str]] = [
    ("enforces no condition", SmallStore(enforces=()), prove, "paid for twice"),
    ("enforces only If-Match", SmallStore(enforces=("if-match",)), prove, "paid for twice"),
    ("enforces only If-None-Match", SmallStore(enforces=("if-none-match",)), prove, "paid for twice"),
    ("nginx weakens etags", SmallStore(sent_etag=lambda etag: f"W/{etag}"), prove, r'returned W/"\d+" .*compress'),
    ("Apache renames etags", SmallStore(sent_etag=lambda etag: f'{etag[:-1]}-gzip"'), prove, r'returned "\d+-gzip" '),
    ("a proxy removes etags", SmallStore(sent_etag=lambda _: ""), prove, "without the ETag"),
    ("etags change by themselves", SmallStore(sent_etag=lambda _: f'"{id(object())}{datetime.now(UTC)}"'), prove,
     r'Two reads returned "\d'),
    ("a proxy compresses bodies", SmallStore(sent_data=lambda _: b"\x1f\x8b compressed"), prove, "compresses"),
    ("a listing lags behind", SmallStore(lists=False), prove, "listing lacks"),
    ("retention", SmallStore(deletes=False), prove, "retention rule"),
    ("two creators win", SmallStore(racy="if-none-match"), prove_race, r"with If-None-Match.*confirmed \d\d of them"),
    ("two changers win", SmallStore(racy="if-match"), prove_race, "with If-Match.*only one may win"),
    ("uploads of 1 MB at most", SmallStore(max_bytes=1_000_000), prove_large_upload, "client_max_body_size"),
    ("uploads of 5 MB less a byte", SmallStore(max_bytes=LARGE_BYTES - 1), prove_large_upload, "limits the size"),
    ("our clock is behind", SmallStore(ahead_seconds=90), all_checks, r"clock is (89|9\d) s behind.*Set the clock"),
    ("our clock is ahead", SmallStore(ahead_seconds=-90), all_checks, r"clock is (89|9\d) s ahead of"),
]  # fmt: skip


@pytest.mark.parametrize(("small", "check", "words"), [row[1:] for row in UNFIT], ids=[row[0] for row in UNFIT])
async def test_unfit_store_is_rejected_before_anything_is_paid(
    open_store: OpenStore, small: SmallStore, check: Check, words: str
) -> None:
    async with listening(small.handle) as endpoint:
        store = open_store(archive(endpoint))
        with pytest.raises(StoreUnfitError, match=words):
            await check(store)
        if check is not prove:  # setup finds whatever any check finds
            with pytest.raises(StoreUnfitError, match=words):
                await all_checks(open_store(archive(endpoint)))


async def test_run_tolerates_clock_difference_that_setup_rejects_up_to_ten_minutes(open_store: OpenStore) -> None:
    for ahead_seconds in (90, -590):
        async with listening(SmallStore(ahead_seconds=ahead_seconds).handle) as endpoint:
            await ensure_ready(open_store(archive(endpoint)))
    async with listening(SmallStore(ahead_seconds=700).handle) as endpoint:
        with pytest.raises(StoreUnfitError, match="clock"):
            await ensure_ready(open_store(archive(endpoint)))


async def test_probe_looks_like_a_record(open_store: OpenStore) -> None:
    """A proxy that compresses does so with JSON, but not with short bodies."""
    small = SmallStore()
    async with listening(small.handle) as endpoint:
        await prove(open_store(archive(endpoint)))
    data, _ = small.objects[PROBE]
    assert len(data) > 2_000
    assert json.loads(data)


async def test_concurrent_probes_of_a_new_store_do_not_interfere(open_store: OpenStore) -> None:
    small = SmallStore()
    async with listening(small.handle) as endpoint:
        block = archive(endpoint)
        await asyncio.gather(*(prove(open_store(block)) for _ in range(8)))
    assert list(small.objects) == [PROBE]


async def test_many_processes_that_probe_at_once_all_get_their_turn(minio_store: ObjectStore) -> None:
    """Each round has one winner, so many processes that retry at the same pace would need as many rounds."""
    await ensure_ready(minio_store, also=(PROBE,))
    await asyncio.gather(*(_prove_change(minio_store) for _ in range(100)))


async def test_store_proven_by_an_earlier_version_is_proven_again(open_store: OpenStore) -> None:
    small = SmallStore(objects={PROBE: (b"Shows that this store keeps conditional writes.\n", 1)}, version=1)
    async with listening(small.handle) as endpoint:
        await prove(open_store(archive(endpoint)))


def next_process(small: SmallStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgets what this process has proven, and what the store has received."""
    monkeypatch.setattr(blocks.probe, "_proven", set())
    small.requests.clear()


async def test_race_runs_once_a_day_and_other_checks_once_per_process(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = SmallStore()

    def raced() -> bool:
        return any(request.startswith("PUT incoming/race-") for request in small.requests)

    async with listening(small.handle) as endpoint:
        store = open_store(archive(endpoint))
        next_process(small, monkeypatch)
        await ensure_ready(store, also=("tasks/.probe",))
        assert raced()
        assert "PUT tasks/.probe" in small.requests
        small.requests.clear()
        await ensure_ready(store, also=("tasks/.probe",))
        assert small.requests == []
        next_process(small, monkeypatch)
        await ensure_ready(store)
        assert f"PUT {PROBE}" in small.requests
        assert not raced()
        next_process(small, monkeypatch)
        small.modified[RACED] = (datetime.now(UTC) - timedelta(hours=25)).isoformat()[:19] + "Z"
        await ensure_ready(store)
        assert raced()
        assert f"PUT {RACED}" in small.requests


async def test_failed_check_is_repeated_in_every_run(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run reports that no video could be archived: the next run must not pay because an earlier check passed."""
    small = SmallStore()
    async with listening(small.handle) as endpoint:
        store = open_store(archive(endpoint))
        next_process(small, monkeypatch)
        await ensure_ready(store)
        small.max_bytes = 1_000_000
        with pytest.raises(StoreUnfitError, match="limits the size"):
            await all_checks(store)
        with pytest.raises(StoreUnfitError, match="limits the size"):
            await ensure_ready(store)
        next_process(small, monkeypatch)
        with pytest.raises(StoreUnfitError, match="limits the size"):
            await ensure_ready(store)
        small.max_bytes = 1_000_000_000
        await ensure_ready(store)
        next_process(small, monkeypatch)
        await ensure_ready(store)
        assert not any(request.startswith("PUT incoming/race-") for request in small.requests)


BUSY = [
    s3_error(503, "SlowDown"),
    s3_error(409, "ConditionalRequestConflict"),
    s3_error(429, "ServiceUnavailable"),  # R2: more than one write per second to one object
]


@pytest.mark.parametrize("answer", BUSY)
async def test_store_that_is_busy_during_the_race_is_not_unfit(open_store: OpenStore, answer: bytes) -> None:
    async with listening(SmallStore(busy=answer).handle) as endpoint:
        await prove_race(open_store(archive(endpoint)))


@pytest.mark.parametrize("code", ["SlowDown", "OperationAborted", "ConditionalRequestConflict"])
async def test_checks_retry_a_busy_store_but_not_one_that_is_down(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setattr(blocks.probe, "BUSY_PAUSES_SECONDS", (0, 0))
    for times, works in ((2, True), (3, False)):
        async with listening(SmallStore(busy_at_first=[s3_error(503, code)] * times).handle) as endpoint:
            assert (await problems(open_store(archive(endpoint))) == []) is works
    down = SmallStore(busy_at_first=[http(503)] * 9)
    async with listening(down.handle) as endpoint:
        assert len(await problems(open_store(archive(endpoint)))) == 1
    assert len(down.requests) == 1


async def test_connection_cut_during_a_large_upload_points_to_the_proxy(open_store: OpenStore) -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (await reader.readuntil(b"\r\n\r\n")).startswith(b"PUT"):
            await reader.readexactly(1_000_000)
            writer.transport.abort()
        writer.write(http(204))

    async with listening(cut) as endpoint:
        with pytest.raises(StoreUnavailableError, match=r"only large uploads.*limits the size"):
            await prove_large_upload(open_store(archive(endpoint)))


REJECTIONS: list[tuple[str, Callable[[str, dict[str, str]], bytes | None], str]] = [
    (
        "an old MinIO answers a failed condition with 304",
        lambda _, headers: http(304) if "if-none-match" in headers else None,
        r"HTTP 304.*mid-2024.*Update",
    ),
    (
        "a proxy changes Cache-Control",
        lambda _, headers: s3_error(403, "SignatureDoesNotMatch") if "cache-control" in headers else None,
        r"SignatureDoesNotMatch.*Small objects were accepted.*Content-Disposition, Cache-Control",
    ),
    (
        "a proxy blocks POST",
        lambda method, _: http(405) if method == "POST" else None,
        r"HTTP 405.*GET, HEAD, PUT, POST and DELETE are needed.*at once or in parts",
    ),
]


@pytest.mark.parametrize(("rejects", "words"), [row[1:] for row in REJECTIONS], ids=[row[0] for row in REJECTIONS])
async def test_proxy_that_would_block_only_videos_is_found_before_paying(
    open_store: OpenStore, rejects: Callable[[str, dict[str, str]], bytes | None], words: str
) -> None:
    async with listening(SmallStore(rejects=rejects).handle) as endpoint:
        (found,) = await problems(open_store(archive(endpoint)))
    assert re.search(words, str(found))


async def test_missing_permissions_are_not_reported_as_a_size_limit(open_store: OpenStore) -> None:
    async def reject(*_: Any) -> bytes:
        return s3_error(403, "AccessDenied")

    small = SmallStore()
    small.answer = reject  # type: ignore[method-assign, assignment]
    async with listening(small.handle) as endpoint:
        for check in (prove, prove_race, prove_large_upload, all_checks):
            with pytest.raises(StoreRefusedError, match="no permission"):
                await check(open_store(archive(endpoint)))


@pytest.mark.parametrize("kind", ["minio_server", "seaweedfs_server"])
async def test_real_stores_pass(open_store: OpenStore, request: pytest.FixtureRequest, kind: str) -> None:
    store = open_store(archive(request.getfixturevalue(kind).endpoint))
    await store.create_bucket()
    await all_checks(store)
    assert await store.names("") == [PROBE, RACED]
