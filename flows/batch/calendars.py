"""Content calendars: the videos of one batch run, as a CSV, JSON Lines or Excel file.

A file whose structure is in doubt is rejected as a whole: a misread row is a video paid for. A row that is invalid
by itself becomes a `BadRow`, and the others are kept.
"""

import asyncio
import codecs
import stat
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Final, Literal

from blocks import VideoArchive
from blocks.store_errors import StoreRefusedError
from flows.batch.calendar_rows import BadRow, Row, mark_duplicates
from flows.batch.csv_files import DELIMITERS, csv_rows
from flows.batch.json_files import json_rows
from flows.batch.row_images import FindImage, LocalImages, beside_object
from flows.batch.tables import CalendarError, line_after, read_table, refusal
from flows.batch.workbooks import workbook_rows
from flows.wording import counted

Kind = Literal["csv", "json", "workbook"]

MAX_CALENDAR_BYTES: Final = 50_000_000
"""Enough for MAX_ROWS rows with the longest prompt. A larger file is not a calendar, and reading it takes several times
its size in memory."""
MAX_OBJECT_NAME_BYTES: Final = 1_024
"""S3's limit."""
KINDS: Final[dict[str, Kind]] = {
    "csv": "csv",
    "tsv": "csv",
    "txt": "csv",  # what Excel calls Unicode text
    "jsonl": "json",
    "ndjson": "json",
    "xlsx": "workbook",
}
SAVE_AS: Final = "Save it as UTF-8; in Excel as 'CSV UTF-8 (comma delimited)', or as .xlsx."


async def read_calendar(
    where: str,
    archive: VideoArchive,
    *,
    sheet: str | None = None,
    ignore_columns: bool = False,
    fit_images: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> list[Row | BadRow]:
    """Every row of a calendar, valid or not; duplicates are bad rows. Images given by a path are uploaded.

    Args:
        where: a path on this machine, or `s3://bucket/object` in any bucket of the archive's store.
        archive: its endpoint and access keys are used.
        sheet, ignore_columns, report: see `parse_calendar`.
        fit_images: whether images given by a path are rotated upright and made small enough; see `read_own_image`.

    Raises:
        CalendarError: it does not exist, may not be read, or cannot be read as a whole.
        StoreError: the store gave no answer, or rejected an image.
    """
    where = where.strip()
    scheme, is_url, rest = where.partition("://")
    local: LocalImages | None = None
    find: FindImage
    if not is_url:
        data = await asyncio.to_thread(_read_file, where)
        local = LocalImages(Path(where), archive.bucket, fit=fit_images)
        find = local.find
    elif scheme.lower() == "s3":
        bucket, _, name = rest.partition("/")
        data = await _read_object(where, bucket, name, archive)
        find = beside_object(bucket, name)
    else:  # the URL is not repeated: it may contain a password or a signature
        raise CalendarError("The calendar must be a path on this machine or s3://bucket/object, not another URL.")
    rows = await asyncio.to_thread(
        parse_calendar, data, name=where, sheet=sheet, ignore_columns=ignore_columns, report=report, find_image=find
    )
    if local is not None:
        async with aclosing(archive.store()) as store:
            await local.upload(store)
        if local.sideways:
            report(
                f"{counted(len(local.sideways), 'image')} stored sideways, such as {local.sideways[0]!r}. APIXO may "
                "use them that way; fit_images (--fit-images) rotates them."
            )
    return rows


def parse_calendar(
    data: bytes,
    *,
    name: str,
    sheet: str | None = None,
    ignore_columns: bool = False,
    report: Callable[[str], None] = lambda _: None,
    find_image: FindImage | None = None,
) -> list[Row | BadRow]:
    """Every row of a calendar, valid or not; duplicates are bad rows. Pure if `find_image` is.

    Args:
        data: the file. Text is UTF-8, or UTF-16 with a byte order mark.
        name: its name, whose extension gives its type: see `KINDS`.
        sheet: which sheet of a workbook; None: the only one that is not hidden.
        ignore_columns: whether unknown columns and fields are ignored. Those that begin with # always are.
        report: called with a sentence about what was ignored.
        find_image: finds images given by a path relative to the calendar; None: they are rejected.

    Raises:
        CalendarError: it cannot be read as a whole.
    """
    kind = _kind(name)
    if len(data) > MAX_CALENDAR_BYTES:
        raise refusal(name, f"is larger than {MAX_CALENDAR_BYTES:,} bytes. Split it into several batches.")
    if sheet is not None and kind != "workbook":
        raise refusal(name, "has no sheets: only an .xlsx file has them. Leave sheet empty.")
    if not data:
        raise refusal(name, "is empty.")
    if kind == "json":
        rows = json_rows(_text(data, name), name, ignore_columns=ignore_columns, report=report, find_image=find_image)
    else:
        is_csv = kind == "csv"
        table = csv_rows(_text(data, name), name) if is_csv else workbook_rows(data, name, sheet=sheet, report=report)
        rows = read_table(table, name, ignore_columns=ignore_columns, report=report, find_image=find_image)
    return mark_duplicates(rows)


def _kind(name: str) -> Kind:
    _, dot, ending = name.lower().rpartition(".")
    if dot and ending in KINDS:
        return KINDS[ending]
    raise refusal(
        name, "must be a .csv, .tsv, .jsonl, .ndjson or .xlsx file. Save a spreadsheet as .xlsx or 'CSV UTF-8'."
    )


def _text(data: bytes, name: str) -> str:
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise refusal(name, f"is UTF-32. {SAVE_AS}")
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = line_after(error.object[: error.start].decode("utf-16" if wide else "utf-8", "replace"))
        raise refusal(name, f"is not {'UTF-16' if wide else 'UTF-8'}: see line {line}. {SAVE_AS}") from error
    if "\0" in text:
        line = line_after(text[: text.index("\0")])
        raise refusal(name, f"is not plain text: line {line} contains a NUL. {SAVE_AS}")
    if not text.strip(f"{DELIMITERS}\r\n "):
        raise refusal(name, "is empty.")
    return text


def _read_file(where: str) -> bytes:
    _kind(where)
    path = Path(where)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait forever
            raise refusal(where, f"is {'a folder' if path.is_dir() else 'not a regular file'}. Give a file.")
        with path.open("rb") as file:
            return file.read(MAX_CALENDAR_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise refusal(where, "is not on the machine that runs the flow. Does the path begin with a /?") from error
    except PermissionError as error:
        raise refusal(where, "may not be read by the user that runs the flow.") from error
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or "that is not a file name"
        raise refusal(where, f"cannot be read: {what}.") from error


async def _read_object(where: str, bucket: str, name: str, archive: VideoArchive) -> bytes:
    try:
        if not name:
            raise ValueError
        store = archive.model_copy(update={"bucket": bucket}).store()
    except ValueError:  # neither repeated nor kept as the cause: it may contain a password
        raise CalendarError("The calendar must be s3://bucket/object, such as s3://plans/march.csv.") from None
    try:
        _kind(where)
        if len(name.encode()) > MAX_OBJECT_NAME_BYTES:
            raise ValueError
        data = await store.read(name, max_bytes=MAX_CALENDAR_BYTES + 1)
    except StoreRefusedError as error:
        what = {
            "NoSuchBucket": f"does not exist: the store has no bucket {bucket}.",
            "AccessDenied": "does not exist, or the access key of the video-archive block has no right to read it.",
        }.get(error.code, f"cannot be read. {error}")
        raise refusal(where, what) from error
    except ValueError as error:
        raise refusal(where, "has a name that is not valid for an object.") from error
    finally:
        await store.aclose()
    if data is None:
        raise refusal(where, f"does not exist: the bucket {bucket} has no such object.")
    return data
