"""How a task ended, handed from the callback receiver to the run that waits for it, so the provider is polled once.

It travels in the event `apixo.task.finished`, which Prefect stores and shows. URLs of results may be signed, so it
is sealed: only whoever has both the API key and the callback secret can read it, or make one that is believed. Where it
cannot be opened, the run polls the provider itself. It also does so after a failure: events can be replayed, and a task
that failed once may have been resumed.
"""

import base64
from typing import Final

from cryptography.fernet import Fernet, InvalidToken

from apixo import Status, Succeeded
from blocks import ApixoApi

MOST_CHARACTERS: Final = 20_000
"""Of a sealed end. One has about a thousand; a longer one is left out, because Prefect limits the size of events."""


def sealed(status: Status, api: ApixoApi) -> str | None:
    """A success, sealed for an event; None: it is not one, there is no callback secret, or it is too long."""
    if not isinstance(status, Succeeded) or api.callback_secret is None:
        return None
    made = _seal(api).encrypt(status.model_dump_json().encode()).decode()
    return made if len(made) <= MOST_CHARACTERS else None


def opened(text: object, task_id: str, api: ApixoApi) -> Succeeded | None:
    """What the provider told the receiver about this task; None: it is about another one, or may be forged."""
    if not isinstance(text, str) or len(text) > MOST_CHARACTERS or api.callback_secret is None:
        return None
    try:
        status = Succeeded.model_validate_json(_seal(api).decrypt(text))
    except (InvalidToken, ValueError):
        return None
    return status if status.task_id == task_id else None


def _seal(api: ApixoApi) -> Fernet:
    return Fernet(base64.urlsafe_b64encode(api.sealing_key()))
