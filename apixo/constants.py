"""Numbers and names of the APIXO video API, each with its unit and its source.

"APIXO" marks what the provider documents. Everything else is our own choice and says why.
"""

from typing import Final

BASE_URL: Final = "https://api.apixo.ai"
SUBMIT_PATH: Final = "/api/v1/generateTask/{model}"
"""APIXO: creates a generation task. This is the paid call."""
STATUS_PATH: Final = "/api/v1/statusTask/{model}"
"""APIXO: returns a task's state. The model must be that of the submission."""

BALANCE_PATH: Final = "/api/v1/apikeys/current-balance"
"""APIXO: the balance of the key's account, in USD."""

DEFAULT_MODEL: Final = "sora-2"
"""The model of a request that names none, and of all records older than the `model` field."""

MAX_PROMPT_CHARACTERS: Final = 10_000
"""APIXO: `input.prompt` has up to 10,000 characters."""

MAX_IMAGE_BYTES: Final = 10_000_000
"""APIXO: at most 10 MB per image. We use the smaller meaning of MB, so that no image is rejected after paying."""

RESULT_DAYS: Final = 15
"""APIXO: result URLs are valid for 15 days."""

RESULT_HOSTS: Final = ("r2.apixo.ai", "cdn.apixo.ai", "file.apixo.ai")
"""Hosts of results in APIXO's documentation. There may be others; these are only used for a warning before paying."""

INITIAL_WAIT_SECONDS: Final = 180.0
"""APIXO: submit, wait 180 s, …"""
POLL_INTERVAL_SECONDS: Final = 10.0
"""… then poll every 10 s."""

PROVIDER_REQUESTS_PER_MINUTE: Final = 10_000
"""APIXO: more than this is answered with 429."""
REQUESTS_PER_MINUTE: Final = 9_000
"""Our default, a tenth below the provider's limit: other programs may use the same key."""
MAX_CONCURRENT_TASKS: Final = 1_000
"""APIXO: more than this is answered with 429."""

CONNECT_TIMEOUT_SECONDS: Final = 10.0
READ_TIMEOUT_SECONDS: Final = 30.0
"""A status call ends after this much silence. Polling again is free."""
SUBMIT_TIMEOUT_SECONDS: Final = 60.0
"""For the whole paid call. Generous: giving up early would leave a payment unclear that a slow reply would confirm."""

MAX_REPLY_BYTES: Final = 1_048_576
"""A reply has a few hundred bytes. A reply above 1 MiB is junk and is not read to its end."""
MAX_EXCERPT_CHARACTERS: Final = 300
"""How much of an unusable reply an error shows."""

MAX_TRIES: Final = 5
"""How many times a free call is tried in all."""
RETRY_DELAY_SECONDS: Final = 2.0
"""The pause before the first retry; it doubles each time."""
MAX_RETRY_DELAY_SECONDS: Final = 60.0
"""The longest pause before a retry, unless the provider asks for a longer one."""
MAX_RETRY_AFTER_SECONDS: Final = 300.0
"""The longest Retry-After. Longer ones are cut to this: a typo must not stop a run for a year."""
