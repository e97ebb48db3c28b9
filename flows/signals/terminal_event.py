"""Publishes that a generation has ended, and removes its open marker once Prefect has confirmed that event."""

from blocks import VideoArchive
from flows.record.generation import Generation, State
from flows.record.ledger import Ledger
from flows.signals.event_connection import EventConnection
from flows.signals.events import deliver


async def publish_end(
    ended: Generation, ledger: Ledger, archive: VideoArchive, connection: EventConnection, *, found: bool = True
) -> None:
    """Sends the event `archived` or `failed`, and removes the open marker once Prefect has confirmed it.

    A run that dies in between leaves the marker, and so does a Prefect server that is away: whoever finds the marker
    sends the event again.

    Args:
        found: it had ended before, so a missing marker means that the event was delivered. Whoever has just recorded
            the end publishes it in any case: the marker may have been removed by a process that published an earlier
            end and died before it could put the marker back. Prefect recognizes a second event as a repetition.
    """
    if found:
        published = await ledger.is_published(ended.key)
        if published and not ended.beside:
            await ledger.close(ended)
        if published is not False:
            return
    if ended.state is State.ARCHIVED:
        names = [item.name for item in ended.objects]
        links = {name: link for name in names if (link := archive.public_link(name))}
        delivered = await deliver("archived", ended, connection, links=links)
    else:
        delivered = await deliver("failed", ended, connection, fail_code=ended.failure().fail_code)
    if delivered:
        await ledger.close(ended)
