"""Numbers and names of the APIXO video API, each with its unit and its source.

"APIXO" marks what the provider documents. Everything else is our own choice and says why.
"""

from typing import Final

BASE_URL: Final = "https://api.apixo.ai"
SUBMIT_PATH: Final = "/api/v1/generateTask/{model}"
"""APIXO: creates a generation task. This is the paid call."""
STATUS_PATH: Final = "/api/v1/statusTask/{model}"
"""APIXO: its state. The model must be that of the submission."""

BALANCE_PATH: Final = "/api/v1/apikeys/current-balance"
"""APIXO: what the key's account has left, in USD."""

DEFAULT_MODEL: Final = "sora-2"
"""The model of a request that names none, and of every record from before requests could name one."""

MAX_PROMPT_CHARACTERS: Final = 10_000
"""APIXO: `input.prompt` has up to 10,000 characters."""

MAX_IMAGE_BYTES: Final = 10_000_000
"""APIXO: at most 10 MB an image. Of the two meanings of MB we use the smaller, so no image is rejected after paying."""

RESULT_DAYS: Final = 15
"""APIXO: result URLs are valid for 15 days."""

RESULT_HOSTS: Final = ("r2.apixo.ai", "cdn.apixo.ai", "file.apixo.ai")
"""Hosts of results in APIXO's documentation. There may be others; only a warning before paying relies on these."""

INITIAL_WAIT_SECONDS: Final = 180.0
"""APIXO: submit, wait 180 s, …"""
POLL_INTERVAL_SECONDS: Final = 10.0
"""… then poll every 10 s."""

PROVIDER_REQUESTS_PER_MINUTE: Final = 10_000
"""APIXO: beyond it, 429."""
REQUESTS_PER_MINUTE: Final = 9_000
"""Our default, a tenth below the provider's limit: other programs may use the same key."""
MAX_CONCURRENT_TASKS: Final = 1_000
"""APIXO: beyond it, 429."""

CONNECT_TIMEOUT_SECONDS: Final = 10.0
READ_TIMEOUT_SECONDS: Final = 30.0
"""Silence this long ends a status call. Polling again is free."""
SUBMIT_TIMEOUT_SECONDS: Final = 60.0
"""The whole paid call. Generous: giving up early leaves a payment unclear that a slow reply would have cleared."""

MAX_REPLY_BYTES: Final = 1_048_576
"""A reply is a few hundred bytes. One larger than 1 MiB is junk and is not read to its end."""
MAX_EXCERPT_CHARACTERS: Final = 300
"""How much of a junk reply an error shows."""

MAX_TRIES: Final = 5
"""How many times a free call is made in all."""
RETRY_DELAY_SECONDS: Final = 2.0
"""The first pause before a call is repeated; it doubles each time."""
MAX_RETRY_DELAY_SECONDS: Final = 60.0
"""The longest pause of our own."""
MAX_RETRY_AFTER_SECONDS: Final = 300.0
"""The longest Retry-After obeyed. A longer one is cut to this: a typo must not park a run for a year."""
