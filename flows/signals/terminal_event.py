"""Tells others that a generation has ended, once Prefect surely knows: then its open marker goes."""

from blocks import VideoArchive
from flows.record.generation import Generation, State
from flows.record.ledger import Ledger
from flows.signals.events import deliver


async def publish_end(ended: Generation, ledger: Ledger, archive: VideoArchive, *, found: bool = True) -> None:
    """Sends the event `archived` or `failed`, and removes the open marker once Prefect has confirmed it.

    A run that dies in between leaves the marker, and so does a Prefect server that is away: whoever finds the marker
    sends the event again.

    Args:
        ended: the generation.
        ledger: whose open marker goes.
        archive: for the links to the objects.
        found: it had ended before, so without the marker it has been told. Whoever has just brought it to its end
            tells it in any case: the marker may have been removed by one who told of an earlier end, and has died
            before he could put it back. Prefect takes a second event for the repetition that it is.
    """
    if found and not await ledger.is_open(ended.key):
        return
    if ended.state is State.ARCHIVED:
        names = [item.name for item in ended.objects]
        links = {name: link for name in names if (link := archive.public_link(name))}
        delivered = await deliver("archived", ended, links=links)
    else:
        delivered = await deliver("failed", ended, fail_code=ended.failure().fail_code)
    if delivered:
        await ledger.close(ended)
