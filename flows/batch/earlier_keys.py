"""Rows that were submitted before line ends inside cells were made the same.

A file with CRLF had CRLF in its prompts then, and so has the ledger. Such a row goes on under the key and with the text
of that time: else it would be paid for once more.
"""

from collections.abc import Mapping, Sequence

from flows.batch.calendar_rows import BadRow, Row
from flows.record.generation import Generation


def keys_of(rows: Sequence[Row | BadRow], batch_key: str) -> list[str]:
    """Every key under which the ledger may know these rows. Pure."""
    items = [row.item for row in rows if isinstance(row, Row)]
    earlier = [item.with_crlf() for item in items if "\n" in item.prompt]
    return list(dict.fromkeys(item.key(batch_key) for item in (*items, *earlier)))


def as_submitted(row: Row | BadRow, batch_key: str, known: Mapping[str, Generation]) -> Row | BadRow:
    """The row, with CRLF in its prompt if that is how it was submitted. Pure.

    Args:
        row: as it is read today.
        batch_key: the batch.
        known: what the ledger has of `keys_of`.
    """
    if isinstance(row, BadRow) or "\n" not in row.item.prompt:
        return row
    earlier = row.item.with_crlf()
    found = known.get(earlier.key(batch_key))
    if found is None or found.request != earlier.request():
        return row
    today = known.get(row.item.key(batch_key))
    return (
        row if today is not None and today.request == row.item.request() else row.model_copy(update={"item": earlier})
    )
