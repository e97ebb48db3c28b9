"""Images that a calendar gives by a path relative to itself: `photos/kite.jpg`."""

import asyncio
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from apixo.constants import MAX_IMAGE_BYTES
from blocks.object_store import ObjectStore
from flows.batch.calendar_rows import RowProblem
from flows.batch.cells import CellError, addresses
from flows.concurrency import at_most
from flows.media.media_errors import ImageRefusedError
from flows.media.own_images import OwnImage, read_own_image, upload

_PATH: Final = re.compile(r"(?!\w+:|//|www\.).+\.(?:jpe?g|png|webp)", re.IGNORECASE)
UPLOADS_AT_ONCE: Final = 8

FindImage = Callable[[str], str]
"""Returns the `s3://` URL of an image that a calendar gives by a path, or raises an ImageRefusedError."""


def beside_object(bucket: str, calendar: str) -> FindImage:
    """For a calendar that is an object: its images are objects of the same bucket."""
    folder = posixpath.dirname(calendar)

    def find(path: str) -> str:
        name = posixpath.normpath(posixpath.join(folder, path)).lstrip("/")
        if name.startswith("../"):
            raise ImageRefusedError("is outside the calendar's bucket")
        return f"s3://{bucket}/{name}"

    return find


class LocalImages:
    """For a calendar that is a file: its images are files, uploaded once the calendar is read.

    Args:
        bucket: where they are uploaded to.
        fit: see `read_own_image`.
    """

    def __init__(self, calendar: Path, bucket: str, *, fit: bool) -> None:
        self._folder, self._bucket, self._fit = calendar.parent, bucket, fit
        self._found: dict[str, str] = {}
        """The object name for each path. The images themselves would take too much memory."""
        self.sideways: list[str] = []

    def find(self, path: str) -> str:
        """Reads an image, and returns the URL that it will have; see `FindImage`."""
        if path not in self._found:
            image = self._read(path)
            self._found[path] = image.object_name
            if image.sideways:
                self.sideways.append(path)
        return f"s3://{self._bucket}/{self._found[path]}"

    async def upload(self, store: ObjectStore) -> None:
        """Uploads the images that are not in the bucket yet."""

        async def one(path: str) -> None:
            name = self._found[path]
            if await store.read(name, max_bytes=1) is None:
                image = await asyncio.to_thread(self._read, path)
                if image.object_name != name:
                    raise ImageRefusedError(f"{path} was changed while the calendar was read. Run it again.")
                await upload(image, store)

        await at_most(UPLOADS_AT_ONCE, one, self._found)

    def _read(self, path: str) -> OwnImage:
        return read_own_image(self._folder / path, shown=path, max_bytes=MAX_IMAGE_BYTES, fit=self._fit)


def replaced(fields: dict[str, Any], find: FindImage | None) -> tuple[dict[str, Any], list[RowProblem]]:
    """A row's fields, with images given by a path replaced by `s3://` ones, and what is wrong with them.

    Args:
        find: None: it is unknown what paths are relative to, so they stay as they are, to be rejected.
    """
    value = fields.get("image_urls")
    try:
        images = addresses(value) if isinstance(value, str) else value
    except CellError:
        return fields, []  # reported when the row is checked
    if find is None or not isinstance(images, list) or not any(map(_is_path, images)):
        return fields, []
    problems: list[RowProblem] = []
    urls: list[Any] = []
    for number, image in enumerate(images):
        try:
            urls.append(find(image.strip()) if _is_path(image) else image)
        except ImageRefusedError as error:
            problems.append(RowProblem(field=f"image_urls.{number}", message=str(error)))
    return {**fields, "image_urls": urls}, problems


def _is_path(image: object) -> bool:
    return isinstance(image, str) and _PATH.fullmatch(image.strip()) is not None
