"""Keys for runs that were given none: a readable name, recorded for every rerun.

`requests/run/<run>` contains the key of a run, `requests/name/<key>` the run that a key belongs to. Both are created,
never changed, so a rerun finds the same key, and no two runs share one.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final

from coolname.data import config as coolname_words

from blocks.object_store import ObjectStore
from blocks.store_errors import PreconditionFailedError, StoreUnavailableError
from flows.record.indexes import Retrying
from flows.record.keys import check_key

VIDEO_NAME_CHARACTERS: Final = 48
BATCH_NAME_CHARACTERS: Final = 27
"""At most 36 with the suffix that makes it unique, like a run's id: a row's id of 91 characters still fits after it."""
MARKS: Final = (0, 4, 8, 32)
"""How many hex digits of the run's digest are appended to a name, one after the other until it is free."""

_GREEK: Final = (
    "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|omicron|pi|rho|sigma|tau|upsilon|phi|chi|"
    "psi|omega"
)
_GENERATED_BY_THE_FORM: Final = re.compile(rf"(?:{_GREEK})\d*(?:-[a-z]+)*")


class RunKeys:
    """The key of each run. The store decides, not the run's name, which can be changed."""

    def __init__(self, store: ObjectStore, retrying: Retrying) -> None:
        self._store, self._retrying = store, retrying

    async def key(self, run: str, name: str, *, batch: bool = False) -> str:
        """The key of a run: the one recorded at its first start, else the name or, if that is taken, a similar one.

        Args:
            run: identifies the run in every rerun: the id of the outermost run, plus the request's digest in a subflow.
            name: the preferred key, such as from `slug`.
            batch: whether the key is the prefix of many keys.

        Raises:
            StoreError: the store did not answer. Nothing can have been paid.
        """
        found = await self._text(f"requests/run/{run}")
        if found is not None:
            return check_key(found)
        # In earlier versions the key was the run's id, and such a run may have paid.
        if await self._is_used(run, batch=batch):
            chosen = run
        else:
            chosen = await self._free_name(run, name, batch=batch)
        return check_key(await self._create(f"requests/run/{run}", check_key(chosen)))

    async def _free_name(self, run: str, name: str, *, batch: bool) -> str:
        for candidate in candidates(run, name):
            holder = await self._text(f"requests/name/{candidate}")
            if holder is None and not await self._is_used(candidate, batch=batch):
                holder = await self._create(f"requests/name/{candidate}", run)
            if holder == run:
                return candidate
        return run

    async def _is_used(self, name: str, *, batch: bool) -> bool:
        """Whether there is a record of this key, or, for a batch, of one that begins with it."""
        if await self._text(f"ledger/{name}.json") is not None:
            return True
        return batch and await self._retrying(lambda: self._store.any_begins(f"ledger/{name}-"))

    async def _text(self, object_name: str) -> str | None:
        found = await self._retrying(lambda: self._store.get(object_name))
        return found.data.decode() if found else None

    async def _create(self, object_name: str, text: str) -> str:
        """Creates the object if it does not exist. Returns its content."""

        async def write() -> None:
            with suppress(PreconditionFailedError):
                await self._store.put_if(object_name, text.encode(), etag=None, content_type="text/plain")

        await self._retrying(write)
        there = await self._text(object_name)
        if there is None:
            raise StoreUnavailableError(f"{object_name} was written but is not there.")
        return there


def candidates(run: str, name: str) -> Iterator[str]:
    """The name, then the name with more and more of the run's digest. Pure."""
    digest = hashlib.sha256(run.encode()).hexdigest()
    for mark in MARKS:
        yield f"{name}-{digest[:mark]}" if mark else name


def slug(text: str, *, most: int = VIDEO_NAME_CHARACTERS, otherwise: str = "video") -> str:
    """The first words of a text as a key. Pure.

    Args:
        most: the maximum length in characters; a word that does not fit completely is left out.
        otherwise: the key if the text has no characters allowed in a key.
    """
    ascii_text = unicodedata.normalize("NFKD", text[:1_000]).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", re.sub(r"(?<=[a-z])'(?=[a-z])", "", ascii_text)).strip("-")
    if len(words) > most:
        words = words[: most + 1].rpartition("-")[0] or words[:most]
    return words.strip("-") or otherwise


def typed_name(run_name: str | None, *verbs: str) -> str | None:
    """The name of a run, if a user typed it; None: Prefect generated it. Pure.

    The classic form generates a star's name such as `tau6-newton`, the server two words such as `tungsten-quokka`.

    Args:
        verbs: the first words of our own names, such as `generate`: the rest is the name.
    """
    if not run_name:
        return None
    for verb in verbs:
        if run_name.startswith(f"{verb} "):
            return run_name.removeprefix(f"{verb} ")
    words = run_name.split("-")
    generated = _GENERATED_BY_THE_FORM.fullmatch(run_name) or (len(words) == 2 and set(words) <= _generated_words())
    return None if generated else run_name


@lru_cache(maxsize=1)
def _generated_words() -> frozenset[str]:
    lists: Any = coolname_words.values()
    return frozenset(word for item in lists for word in item.get("words", ()))
