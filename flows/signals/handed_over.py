"""Passes a task's end from the callback receiver to the run that waits for it, so that the provider is polled once.

It is a part of the event `apixo.task.finished`, which Prefect stores and shows. Result URLs may be signed, so it is
encrypted: only with both the API key and the callback secret can it be read, or forged. A run that cannot decrypt it
polls the provider itself. It also does so after a failure: events can be replayed, and a task that failed once may have
been resumed.
"""

import base64
from typing import Final

from cryptography.fernet import Fernet, InvalidToken

from apixo import Status, Succeeded
from blocks import ApixoApi

MOST_CHARACTERS: Final = 20_000
"""The longest encrypted end. One usually has about a thousand. Prefect limits the size of events."""


def sealed(status: Status, api: ApixoApi) -> str | None:
    """A success, encrypted for an event. None: not a success, no callback secret, or too long."""
    if not isinstance(status, Succeeded) or api.callback_secret is None:
        return None
    made = _cipher(api).encrypt(status.model_dump_json().encode()).decode()
    return made if len(made) <= MOST_CHARACTERS else None


def opened(text: object, task_id: str, api: ApixoApi) -> Succeeded | None:
    """The success of this task as the provider reported it to the receiver. None: of another task, or maybe forged."""
    if not isinstance(text, str) or len(text) > MOST_CHARACTERS or api.callback_secret is None:
        return None
    try:
        status = Succeeded.model_validate_json(_cipher(api).decrypt(text))
    except (InvalidToken, ValueError):
        return None
    return status if status.task_id == task_id else None


def _cipher(api: ApixoApi) -> Fernet:
    return Fernet(base64.urlsafe_b64encode(api.sealing_key()))
