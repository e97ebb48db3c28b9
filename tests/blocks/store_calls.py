"""Makes every call that an object store offers."""

import asyncio
from pathlib import Path

from blocks.object_store import ObjectStore
from blocks.probe import ensure_ready


async def every_call(store: ObjectStore, file: Path) -> list[BaseException | object]:
    file.write_bytes(b"clip")  # noqa: ASYNC240 - four bytes
    calls = [
        ensure_ready(store),
        store.get("a"),
        store.put_if("a", b"", etag=None),
        store.put("a", b""),
        store.create_file("a", file, content_type="video/mp4"),
        store.digest("a"),
        store.read("a", max_bytes=9),
        store.replace_file("a", file, etag='"0"', content_type="video/mp4"),
        store.get_file("a", file.with_name("download")),
        store.remove("a"),
        store.names(""),
    ]
    results: list[BaseException | object] = await asyncio.gather(*calls, return_exceptions=True)
    return results
