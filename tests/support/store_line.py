"""An object store with hooks: a test can cut requests and replies, or act between them."""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from blocks import VideoArchive
from blocks.object_store import ObjectStore
from blocks.store_errors import StoreUnavailableError


class Call(NamedTuple):
    """One call to the store: GET, PUT, DELETE or LIST, and the name of the object."""

    method: str
    name: str

    @property
    def writes_a_record(self) -> bool:
        """Whether it changes a record of the ledger."""
        return self.method == "PUT" and self.name.startswith("ledger/")


Hook = Callable[[Call], Awaitable[None]]


async def nothing(_: Call) -> None:
    """Does nothing: the call goes through."""


class Line:
    """The line to the store. `before` runs before each call, `after` between the call and the return of its result."""

    def __init__(self) -> None:
        self.before: Hook = nothing
        self.after: Hook = nothing
        self.seen: list[str] = []

    def store(self, archive: VideoArchive) -> ObjectStore:
        """The archive's store, with every call going through this line."""
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
    """The error that a broken connection causes."""
    return StoreUnavailableError("The object store did not answer (cut).")
