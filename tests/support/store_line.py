"""A way to the object store on which a test cuts requests and replies, or does something in between."""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from blocks import VideoArchive
from blocks.object_store import ObjectStore
from blocks.store_errors import StoreUnavailableError


class Call(NamedTuple):
    """One call of the store: GET, PUT, DELETE or LIST, and the object's name."""

    method: str
    name: str

    @property
    def writes_a_record(self) -> bool:
        """Whether it changes a record of the ledger."""
        return self.method == "PUT" and self.name.startswith("ledger/")


Hook = Callable[[Call], Awaitable[None]]


async def nothing(_: Call) -> None:
    """The good line."""


class Line:
    """The way to the store. `before` runs before a call is made, `after` before its result is handed back."""

    def __init__(self) -> None:
        self.before: Hook = nothing
        self.after: Hook = nothing
        self.seen: list[str] = []

    def store(self, archive: VideoArchive) -> ObjectStore:
        """The archive's bucket at the end of this line."""
        store = archive.store()
        make_call = store._call

        async def call(method: str, name: str, make: Callable[[], Awaitable[Any]]) -> Any:
            about = Call(method, name)
            self.seen.append(f"{method} {name}")
            await self.before(about)
            made = await make_call(method, name, make)
            await self.after(about)
            return made

        store._call = call  # type: ignore[method-assign, assignment]
        return store


def cut() -> StoreUnavailableError:
    """The connection breaks."""
    return StoreUnavailableError("The object store did not answer (cut).")
