"""Calendars of 100,000 rows or 100 MB take bounded time and memory, and nothing is paid for them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from deployments.sandbox import SandboxServer
from flows.batch.summary import BadRowsError
from flows.batch.tables import CalendarError
from flows.generate_batch import generate_batch
from flows.signals.artifacts import artifact_key
from tests.attack.test_hostile_input import names
from tests.flows.conftest import StoredBlocks
from tests.support.fork_server import ROOT
from tests.support.memory import forget_peak, peak_kib

PARSE_SCRIPT = """
import sys, time
from tests.support.memory import forget_peak, peak_kib
from flows.batch.tables import CalendarError
from flows.batch.calendars import parse_calendar
from flows.batch.calendar_rows import BadRow
name, path = sys.argv[1:]
data = open(path, "rb").read()
before, began = forget_peak(), time.process_time()
try:
    rows = parse_calendar(data, name=name)
    end = f"{len(rows)} rows, {sum(isinstance(row, BadRow) for row in rows)} bad"
except CalendarError as error:
    end = str(error)
print(f"{time.process_time() - began:.2f} {peak_kib() - before} {end}")
"""


class Case(NamedTuple):
    """A calendar, and the expected result."""

    name: str
    make: Callable[[], bytes]
    end: str


def rows(count: int, row: bytes = b"A kite,r%d\n", head: bytes = b"prompt,id\n") -> bytes:
    """A calendar with this many different rows."""
    return head + b"".join(row % number for number in range(count))


TOO_MANY = "has 100,000 rows; the limit of a batch is 5,000"
CALENDARS: Final = {
    "100,000 rows": Case("plan.csv", lambda: rows(100_000), TOO_MANY),
    "100,000 formulas": Case("plan.csv", lambda: rows(100_000, b"\"=cmd|' /C calc'!A%d\"\n", b"prompt\n"), TOO_MANY),
    "100,000 rows of JSON": Case("plan.jsonl", lambda: b'{"prompt": "A kite"}\n' * 100_000, TOO_MANY),
    "5,000 rows": Case("plan.csv", lambda: rows(5_000), "5000 rows, 0 bad"),
    "5,000 rows and a BOM": Case("plan.csv", lambda: b"\xef\xbb\xbf" + rows(5_000), "5000 rows, 0 bad"),
    "5,000 formulas": Case("plan.csv", lambda: rows(5_000, b"=cmd|' /C calc'!A0,r%d\n"), "5000 rows, 0 bad"),
    "5,000 longest rows": Case("plan.csv", lambda: rows(5_000, b"x" * 9_900 + b",r%d\n"), "5000 rows, 0 bad"),
    "5,000 rows of junk": Case("plan.jsonl", lambda: b"".join(map(junk, range(5_000))), "5000 rows, 5000 bad"),
    "a cell of 50 MB": Case(
        "plan.csv", lambda: b"prompt\n" + b"x" * 49_999_000, "a cell of more than 131,072 characters"
    ),
    "a quoted cell of 50 MB": Case("plan.csv", lambda: b'prompt\n"' + b"x" * 49_999_000, "from line 2 on: the quote"),
    "a cell of 100 MB": Case("plan.csv", lambda: b"prompt\n" + b"x" * 100_000_000, "is larger than 50,000,000 bytes"),
    "a line of 50 MB": Case("plan.jsonl", lambda: b'{"prompt": "' + b"x" * 49_999_000, "1 rows, 1 bad"),
    "50 MB of brackets": Case("plan.jsonl", lambda: b"[" * 49_999_000, "1 rows, 1 bad"),
    "400 nested lines": Case("plan.jsonl", lambda: (b"[" * 100_000 + b"\n") * 400, "400 rows, 400 bad"),
    "50 MB of commas": Case("plan.csv", lambda: b"prompt" + b"," * 49_999_000, "contains no videos"),
    "50 MB of quotes": Case("plan.csv", lambda: b"prompt\n" + b'"' * 49_999_001, "from line 2 on: the quote"),
    "50 MB of line feeds": Case("plan.csv", lambda: b"prompt" + b"\n" * 49_999_000 + b"A kite", "1 rows, 0 bad"),
    "25 million rows": Case("plan.csv", lambda: b"prompt\n" + b"x\n" * 24_999_000, "has 24,999,000 rows"),
    "UTF-16": Case("plan.csv", lambda: rows(100_000).decode().encode("utf-16"), TOO_MANY),
    "latin-1": Case("plan.csv", lambda: rows(100_000) + b"S\xfcden\n", "is not UTF-8: see line 100002"),
    "a NUL at the end": Case("plan.csv", lambda: rows(100_000) + b"\0", "line 100002 contains a NUL"),
}


def junk(number: int) -> bytes:
    """A line of nearly 10 kB in which every field is invalid."""
    return json.dumps({f"prompt{number}_{column}": column for column in range(390)}).encode() + b"\n"


MAX_SECONDS: Final = 90.0
"""Processor time, even on a slow and busy machine. The slowest calendar takes 20 to 40 s here."""
MAX_KIB: Final = 1_000_000
"""A file of 50 MB is kept as bytes, as text, and as lines or cells. The largest measured value was 700 MB."""


@pytest.mark.parametrize("what", CALENDARS)
def test_huge_calendar_takes_bounded_time_and_memory(what: str, tmp_path: Path) -> None:
    """Parses it in a separate process, so that only the parsing is measured."""
    name, make, expected = CALENDARS[what]
    (tmp_path / "plan").write_bytes(make())
    finished = subprocess.run(
        [sys.executable, "-c", PARSE_SCRIPT, name, str(tmp_path / "plan")],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True, timeout=170,
    )  # fmt: skip
    seconds, kib, outcome = finished.stdout.strip().split(" ", 2)
    print(
        f"\n{what}: {seconds} s of processor time, at most {int(kib) / 1024:.0f} MiB more than before: {outcome[:110]}"
    )
    assert expected in outcome
    assert float(seconds) < MAX_SECONDS
    assert int(kib) < MAX_KIB


@pytest.mark.parametrize("what", ["100,000 rows", "5,000 rows of junk"])
async def test_batch_with_huge_calendar_pays_nothing_and_reports_why(
    what: str,
    stored: StoredBlocks,
    sandbox: SandboxServer,
    key: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    name, make, _ = CALENDARS[what]
    (tmp_path / name).write_bytes(make())
    before, began = forget_peak(), time.monotonic()
    with pytest.raises((BadRowsError, CalendarError)) as raised:
        await generate_batch(calendar=str(tmp_path / name), key=key, api=stored.name, archive=stored.name)
    took = time.monotonic() - began
    print(f"\n{what}: the run took {took:.1f} s and at most {(peak_kib() - before) / 1024:.0f} MiB more than before")
    assert len(str(raised.value)) < 40_000
    assert sandbox.record.submits() == []
    assert await names(stored, "ledger/") == []
    if isinstance(raised.value, BadRowsError):
        async with get_client() as client:
            wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[artifact_key(key, kind="batch")]))
            (found,) = await client.read_artifacts(artifact_filter=wanted)
        print(f"the table has {len(str(found.data)):,} characters")
        assert len(str(found.data)) < 10_000_000
        assert len(json.loads(str(found.data)) if isinstance(found.data, str) else found.data or ()) == 5_000
        logged = [record.getMessage() for record in caplog.records]
        assert sum("is invalid. " in line for line in logged) == 100
        assert "4900 more lines are invalid: see the run's table." in logged
