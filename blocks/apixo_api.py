"""The block with the settings for the APIXO Sora-2 API."""

import hmac
import json
from decimal import Decimal
from typing import Any, ClassVar, Final, Self

import httpx
from prefect.blocks.core import Block
from prefect.blocks.system import Secret
from pydantic import ConfigDict, Field, HttpUrl, field_validator, model_validator

from apixo import ApixoClient, StatusClient, catalog, constants
from apixo.network import is_loopback
from apixo.urls import BaseUrl, OptionalBaseUrl
from blocks.prices import Price, price_of

CALLBACK_SECRET_CHARACTERS: Final = 16
"""The minimum length of a callback secret. With one callback URL, an attacker can guess secrets offline."""

CHECK_KEY: Final = "check"
"""With this key and attempt 0, which no generation has, a setup check calls the receiver to verify its blocks."""
BLOCKS_HEADER: Final = "Sora-Blocks"
"""The header of the receiver's reply that contains its `blocks_digest`."""


class ApixoApi(Block):
    """How to reach the APIXO Sora-2 API: the key, the URL, the timing and the limits.

    Example:
        Load a stored block and request the state of a task:
        ```python
        from blocks.apixo_api import ApixoApi

        api = ApixoApi.load("BLOCK_NAME")
        async with api.client() as apixo:
            status = await apixo.status("task_12345678")
        ```
    """

    # Messages end up in logs, so they never contain input, such as the key. Infinity cannot be stored: a block with it
    # could no longer be loaded.
    model_config = ConfigDict(hide_input_in_errors=True, allow_inf_nan=False)

    _block_type_name = "APIXO API"
    _block_type_slug = "apixo-api"
    _description = "How to reach the APIXO Sora-2 API: the key in a Secret block, the URL, the timing and the limits."
    # Shipped with Prefect itself, at a fixed commit, like the logos of its own blocks.
    _logo_url = HttpUrl(
        "https://raw.githubusercontent.com/PrefectHQ/prefect/420d0d6a78bb6df1fc18bcf188fdad43c1d22ea9/assets/block-logos/webhook.png"
    )
    _documentation_url: ClassVar[HttpUrl | None] = HttpUrl("https://apixo.ai")

    # Not `Secret[str]`, which is another block type for Prefect ("secret-str"): a stored Secret block would be copied
    # into such a field, together with the key, instead of being referenced.
    api_key: Secret = Field(  # type: ignore[type-arg]
        default=..., title="API key", description="The Secret block with the APIXO API key."
    )
    base_url: BaseUrl = Field(
        default=constants.BASE_URL,
        title="Base URL",
        description="The API's URL. Change it only for the local sandbox or a proxy.",
    )
    callback_url: OptionalBaseUrl = Field(
        default=None,
        title="Callback URL",
        description=(
            "Public base URL of the callback receiver, such as https://callbacks.example.com. If set, the provider "
            "calls back when a video is done. If empty, the pipeline polls."
        ),
    )
    callback_secret: Secret | None = Field(  # type: ignore[type-arg]
        default=None,
        title="Callback secret",
        description=(
            "The Secret block whose text, 16 random characters or more, signs the callback URLs. Required with a "
            "callback URL."
        ),
    )
    initial_wait_seconds: float = Field(
        default=constants.INITIAL_WAIT_SECONDS,
        ge=0,
        title="Initial wait (seconds)",
        description=(
            "Seconds from the submission to the first poll. APIXO advises 180 for sora-2. If you keep the default, "
            "other models use their own value."
        ),
    )
    poll_interval_seconds: float = Field(
        default=constants.POLL_INTERVAL_SECONDS,
        gt=0,
        title="Poll interval (seconds)",
        description=(
            "Seconds between two polls. APIXO advises 10 for sora-2. If you keep the default, other models use their "
            "own value."
        ),
    )
    deadline_seconds: float = Field(
        default=1800,
        gt=0,
        title="Deadline (seconds)",
        description=(
            "Seconds after which a run stops waiting. The video is not lost: a rerun continues to wait. APIXO says "
            "that 12 seconds of video take 4 to 6 minutes."
        ),
    )
    submit_timeout_seconds: float = Field(
        default=constants.SUBMIT_TIMEOUT_SECONDS,
        gt=0,
        title="Submit timeout (seconds)",
        description=(
            "The longest the paid call may take. After twice this time without an answer, a claim's owner counts as "
            "dead and the payment as unclear."
        ),
    )
    submit_outage_seconds: float = Field(
        default=600,
        gt=0,
        title="Submit outage (seconds)",
        description=(
            "How long a batch holds its submissions after an unclear answer while it waits for APIXO to answer a free "
            "call. After that the run submits no more; the next run continues."
        ),
    )
    retry_delay_seconds: float = Field(
        default=constants.RETRY_DELAY_SECONDS,
        gt=0,
        title="Retry delay (seconds)",
        description="Seconds before the first retry of a failed step; doubles with each retry.",
    )
    requests_per_minute: float = Field(
        default=constants.REQUESTS_PER_MINUTE,
        gt=0,
        le=constants.PROVIDER_REQUESTS_PER_MINUTE,
        title="Requests per minute",
        description="The most requests per minute that one flow run makes. APIXO allows 10,000 for all runs together.",
    )
    max_in_flight: int = Field(
        default=constants.MAX_CONCURRENT_TASKS,
        ge=1,
        le=constants.MAX_CONCURRENT_TASKS,
        title="Maximum videos at once",
        description="The most generations of one batch that are in progress at once. APIXO allows 1,000.",
    )
    price_per_second: Decimal | None = Field(
        default=None,
        ge=0,
        title="Price per second of video",
        description=(
            "What you pay for a second of sora-2 video, in your currency. For estimates and max_spend; empty means "
            "unknown."
        ),
    )
    prices: dict[str, Price] = Field(
        default_factory=dict,
        title="Prices of other models",
        description=(
            'What you pay for each model, by its name: `{"MODEL": {"per_second": "…"}}`, or `per_video` if the '
            "length does not matter. A model that is not listed has no known price."
        ),
    )
    currency: str | None = Field(
        default=None,
        max_length=10,
        title="Currency",
        description="The currency of all prices, such as USD. It is recorded with the cost of each video.",
    )
    max_spend_per_day: Decimal | None = Field(
        default=None,
        ge=0,
        title="Spending limit per day",
        description=(
            "The most that all runs together may spend in a day (UTC), by the prices here; empty means no limit. Every "
            "run that archives in the same bucket counts, on any machine. Every model in use needs a price."
        ),
    )
    max_spend_per_month: Decimal | None = Field(
        default=None,
        ge=0,
        title="Spending limit per month",
        description="The same for a month (UTC).",
    )
    balance_warning_below: Decimal | None = Field(
        default=None,
        ge=0,
        title="Balance warning below",
        description=(
            "If the APIXO account has less than this (USD) when a batch starts, the event `sora.balance.low` is sent; "
            "empty means never."
        ),
    )
    require_balance: bool = Field(
        default=False,
        title="Require balance",
        description=(
            "Fail a batch at its start, before anything is paid, if the APIXO account has less than its videos cost. "
            "Off: only warn."
        ),
    )
    moderation_retries: int = Field(
        default=0,
        ge=0,
        le=3,
        title="Moderation retries",
        description=(
            "How often a video whose output was flagged, or that a detector such as NSFW flagged, is submitted and "
            "paid again. Such flags are sometimes wrong. A flagged prompt or image is never submitted again."
        ),
    )
    result_valid_hours: float = Field(
        default=24.0 * constants.RESULT_DAYS,
        ge=24,  # a lower limit would give up tasks that are still in progress
        title="Results are valid for (hours)",
        description=(
            "How long APIXO keeps a result. It documents 15 days (360 hours), on older pages 24 hours. Every result is "
            "fetched at once. A task that still has no end or no result after this time is given up."
        ),
    )
    result_check_url: str | None = Field(
        default=None,
        title="Result check URL",
        description=(
            "A small file on a public host, which dry runs and `sora doctor` fetch over the same route as results. "
            "Empty: the API's own host is used."
        ),
    )
    allow_private_hosts: bool = Field(
        default=False,
        title="Allow private hosts",
        description=(
            "Lets image and result URLs point into private networks and to this machine. For local use only. "
            "Link-local addresses, where clouds keep credentials, remain blocked."
        ),
    )

    @field_validator("prices", mode="before")
    @classmethod
    def _prices_as_text(cls, value: object) -> object:
        """Parses JSON text: `sora setup` reads every field from the environment as text."""
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError as error:
            raise ValueError('must be a JSON object such as {"kling-2-6": {"per_second": "0.5"}}') from error

    @field_validator("base_url")
    @classmethod
    def _key_travels_encrypted(cls, value: str) -> str:
        url = httpx.URL(value)
        if url.scheme == "http" and not is_loopback(url.host):
            raise ValueError(
                "must start with https://, or the API key would be sent in plain text; http:// is for loopback"
            )
        return value

    @model_validator(mode="after")
    def _callbacks_are_signed(self) -> Self:
        if self.callback_url and self.callback_secret is None:
            raise ValueError("callback_url needs callback_secret: unsigned callback URLs could be guessed")
        if self.callback_secret is None:
            return self
        text = secret_text(self.callback_secret).strip()
        if not text:
            raise ValueError("callback_secret is an empty Secret block: anyone could sign; enter a long random text")
        if len(text) < CALLBACK_SECRET_CHARACTERS:
            raise ValueError(
                f"callback_secret has {len(text)} characters and could be guessed; use a random text of "
                f"{CALLBACK_SECRET_CHARACTERS} or more, such as the output of `openssl rand -hex 32`"
            )
        return self

    def client(self, **options: Any) -> ApixoClient:
        """A client with this block's key, URL and limits. It can submit, so it can spend money.

        Args:
            options: further arguments of `apixo.ApixoClient`.
        """
        return ApixoClient(secret_text(self.api_key), **(self._client_options() | options))

    def status_client(self) -> StatusClient:
        """The same, but it cannot submit."""
        return StatusClient(secret_text(self.api_key), **self._client_options())

    def _client_options(self) -> dict[str, Any]:
        return {
            "base_url": self.base_url,
            "requests_per_minute": self.requests_per_minute,
            "submit_timeout_seconds": self.submit_timeout_seconds,
            "retry_delay_seconds": self.retry_delay_seconds,
        }

    def callback_token(self, key: str, attempt_number: int = 1) -> str:
        """The token that proves that a callback URL is ours: HMAC-SHA256 in hex.

        It signs the key for the first attempt, and `key/number` for a later one. No key contains a slash, so no two
        attempts share a token.
        """
        about = _callback_path(key, attempt_number)
        return hmac.digest(secret_text(self._secret()).encode(), about.encode(), "sha256").hex()

    def _secret(self) -> Secret[Any]:
        if self.callback_secret is None:
            raise ValueError("this apixo-api block has no callback_secret; set one to use callbacks")
        return self.callback_secret

    def callback_url_for(self, key: str, attempt_number: int = 1) -> str | None:
        """The URL that the provider calls when the task of this attempt ends; None in poll mode.

        Each attempt has its own URL: a late call for the first one must not be mistaken for the second one's.
        """
        if not self.callback_url:
            return None
        about = _callback_path(key, attempt_number)
        return f"{self.callback_url}/apixo/{about}/{self.callback_token(key, attempt_number)}"

    def blocks_digest(self, bucket: str) -> str:
        """The receiver's answer to a setup check: a digest of both secrets, the API's URL and the archive's bucket.

        The store's endpoint is left out, because a container may use another name for it.
        """
        about = "\n".join([self.callback_token(CHECK_KEY, 0), self.base_url, bucket])
        return hmac.digest(secret_text(self.api_key).encode(), about.encode(), "sha256").hex()

    def sealing_key(self) -> bytes:
        """A 32-byte key, derived from both secrets, that seals what the receiver hands to waiting runs."""
        # It differs from every callback token: a video's key contains no line feed.
        about = f"handed over\n{secret_text(self.api_key)}"
        return hmac.digest(secret_text(self._secret()).encode(), about.encode(), "sha256")

    def price(self, model: str, seconds: int | None) -> Decimal | None:
        """What a video of this model and length costs; None: no price is known."""
        return price_of(model, seconds, self.price_list)

    @property
    def price_list(self) -> dict[str, Price]:
        """The price of each model that has one. `prices` overrides `price_per_second`, which is the price of sora-2."""
        default = self.price_per_second
        return ({} if default is None else {constants.DEFAULT_MODEL: Price(per_second=default)}) | self.prices

    def timing(self, model: str) -> tuple[float, float]:
        """Seconds until the first poll for a task of this model, and between two polls.

        A value that was changed in the block applies to every model. For a default, which is APIXO's advice for sora-2,
        the model's own value from the catalog is used.
        """
        known = catalog.find(model)
        first, interval = self.initial_wait_seconds, self.poll_interval_seconds
        if known is not None and first == constants.INITIAL_WAIT_SECONDS:
            first = known.first_wait_seconds
        if known is not None and interval == constants.POLL_INTERVAL_SECONDS:
            interval = known.poll_interval_seconds
        return first, interval

    @property
    def lease_seconds(self) -> float:
        """How long a claim may stay without an answer before its owner counts as dead."""
        return 2 * self.submit_timeout_seconds


def _callback_path(key: str, attempt_number: int) -> str:
    return key if attempt_number == 1 else f"{key}/{attempt_number}"


def secret_text(secret: Secret[Any]) -> str:
    """A Secret's text exactly as it was entered. `Secret.get()` would turn a key of digits into a number."""
    return str(secret.value.get_secret_value())
