"""Tells others that a generation has ended, once Prefect surely knows: then its open marker goes."""

from flows.events import deliver
from flows.generation import Generation, State
from flows.resources import Resources


async def announce(ended: Generation, resources: Resources) -> None:
    """Sends the event `archived` or `failed`, and removes the open marker once Prefect has confirmed it.

    A run that dies in between leaves the marker, and so does a Prefect server that is away: whoever finds the marker
    sends the event again. A generation without the marker has been announced.
    """
    if not await resources.ledger.is_open(ended.key):
        return
    if ended.state is State.ARCHIVED:
        names = [item.name for item in ended.objects]
        links = {name: link for name in names if (link := resources.archive.public_link(name))}
        delivered = await deliver("archived", ended, links=links)
    else:
        delivered = await deliver("failed", ended, fail_code=ended.failure().fail_code)
    if delivered:
        await resources.ledger.close(ended)
