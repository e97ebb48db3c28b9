"""How a task ended, handed from the callback receiver to the run that waits for it, so that the provider is asked once.

It travels in the event `apixo.task.finished`, which Prefect stores and shows. Addresses of results may be signed, so it
is sealed: only whoever has both the API key and the callback secret can read it, or make one that is believed. Where it
cannot be opened, the run asks the provider itself. It also does so after a failure: events can be replayed, and a task
that failed once may have been taken up again.
"""

import base64
from typing import Final

from cryptography.fernet import Fernet, InvalidToken

from apixo import Status, Succeeded
from blocks import ApixoApi

MOST_CHARACTERS: Final = 20_000
"""Of a sealed end. One is a thousand long; a larger one is left out, for Prefect limits the size of events."""


def sealed(status: Status, api: ApixoApi) -> str | None:
    """A success as an event may hold it; None: it is none, there is no callback secret, or it is too long."""
    if not isinstance(status, Succeeded) or api.callback_secret is None:
        return None
    made = _seal(api).encrypt(status.model_dump_json().encode()).decode()
    return made if len(made) <= MOST_CHARACTERS else None


def opened(text: object, task_id: str, api: ApixoApi) -> Succeeded | None:
    """What the provider said of this task to the receiver; None: it is of another one, or may be anybody's."""
    if not isinstance(text, str) or len(text) > MOST_CHARACTERS or api.callback_secret is None:
        return None
    try:
        status = Succeeded.model_validate_json(_seal(api).decrypt(text))
    except (InvalidToken, ValueError):
        return None
    return status if status.task_id == task_id else None


def _seal(api: ApixoApi) -> Fernet:
    return Fernet(base64.urlsafe_b64encode(api.sealing_key()))
