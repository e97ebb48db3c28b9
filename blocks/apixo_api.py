"""The block that says how to reach the APIXO Sora-2 API."""

import hashlib
import hmac
import json
from decimal import Decimal
from typing import Any, ClassVar, Final, Self

import httpx
from prefect.blocks.core import Block
from prefect.blocks.system import Secret
from pydantic import ConfigDict, Field, HttpUrl, field_validator, model_validator

from apixo import ApixoClient, StatusClient, catalog, constants
from apixo.routes import is_loopback
from blocks.prices import Price, price_of

CALLBACK_SECRET_CHARACTERS: Final = 16
"""The least a callback secret has. Whoever sees one callback URL can try secrets on it, as fast as machines go."""

CHECK_KEY: Final = "check"
"""With attempt 0, which no generation has, the callback address that a setup check asks."""
BLOCKS_HEADER: Final = "Sora-Blocks"
"""The header of the answer."""


class ApixoApi(Block):
    """How to reach the APIXO Sora-2 API: the key, the address, the timing and the limits.

    Example:
        Load a stored block and ask for the state of a task:
        ```python
        from blocks.apixo_api import ApixoApi

        api = ApixoApi.load("BLOCK_NAME")
        async with api.client() as apixo:
            status = await apixo.status("task_12345678")
        ```
    """

    # Inputs stay out of messages, for they end in logs and the key is among them. Infinity is no number of seconds: it
    # cannot be stored, and a block that holds it cannot be loaded any more.
    model_config = ConfigDict(hide_input_in_errors=True, allow_inf_nan=False)

    _block_type_name = "APIXO API"
    _block_type_slug = "apixo-api"
    _description = (
        "How to reach the APIXO Sora-2 API: the key in a Secret block, the address, the timing and the limits."
    )
    # Shipped with Prefect itself, at a fixed commit, as the logos of its own blocks are.
    _logo_url = HttpUrl(
        "https://raw.githubusercontent.com/PrefectHQ/prefect/420d0d6a78bb6df1fc18bcf188fdad43c1d22ea9/assets/block-logos/webhook.png"
    )
    _documentation_url: ClassVar[HttpUrl | None] = HttpUrl("https://apixo.ai")

    # The bare `Secret`: for Prefect `Secret[str]` is another block type ("secret-str"). A stored Secret block would be
    # copied into such a field, the key with it, where the document should hold a reference.
    api_key: Secret = Field(  # type: ignore[type-arg]
        default=..., title="API key", description="The Secret block that holds the APIXO API key."
    )
    base_url: str = Field(
        default=constants.BASE_URL,
        title="Base URL",
        description="Where the API is. Leave it, unless you use the local sandbox or a proxy.",
    )
    callback_url: str | None = Field(
        default=None,
        title="Callback URL",
        description=(
            "Public base URL of the callback receiver, such as https://callbacks.example.com. Set: the provider calls "
            "back when a video is done. Empty: the pipeline polls."
        ),
    )
    callback_secret: Secret | None = Field(  # type: ignore[type-arg]
        default=None,
        title="Callback secret",
        description=(
            "The Secret block whose text, 16 random characters or more, signs the callback URLs. Needed with a "
            "callback URL."
        ),
    )
    initial_wait_seconds: float = Field(
        default=constants.INITIAL_WAIT_SECONDS,
        ge=0,
        title="Initial wait (seconds)",
        description=(
            "Seconds from the submission to the first question. APIXO advises 180 for sora-2; left at that, other "
            "models have the advice for them."
        ),
    )
    poll_interval_seconds: float = Field(
        default=constants.POLL_INTERVAL_SECONDS,
        gt=0,
        title="Poll interval (seconds)",
        description=(
            "Seconds between two questions. APIXO advises 10 for sora-2; left at that, other models have the advice "
            "for them."
        ),
    )
    deadline_seconds: float = Field(
        default=1800,
        gt=0,
        title="Deadline (seconds)",
        description=(
            "Seconds after which a run stops waiting. The video is not lost: a rerun goes on waiting. APIXO says that "
            "12 seconds of video take 4 to 6 minutes."
        ),
    )
    submit_timeout_seconds: float = Field(
        default=constants.SUBMIT_TIMEOUT_SECONDS,
        gt=0,
        title="Submit time-out (seconds)",
        description=(
            "The most the paid call may take. Whoever finds a claim without an answer for twice as long takes its "
            "owner for dead and the payment for unclear."
        ),
    )
    submit_outage_seconds: float = Field(
        default=600,
        gt=0,
        title="Submit outage (seconds)",
        description=(
            "The longest that a batch holds its submissions back after an unclear answer, until APIXO answers a call "
            "that costs nothing. Then the run submits no more; the next one goes on."
        ),
    )
    retry_delay_seconds: float = Field(
        default=constants.RETRY_DELAY_SECONDS,
        gt=0,
        title="Retry delay (seconds)",
        description="Seconds before a failed step is tried again the first time; it doubles each time.",
    )
    requests_per_minute: float = Field(
        default=constants.REQUESTS_PER_MINUTE,
        gt=0,
        le=constants.PROVIDER_REQUESTS_PER_MINUTE,
        title="Requests a minute",
        description="Most requests a minute of one flow run. APIXO allows 10,000 for all of them together.",
    )
    max_in_flight: int = Field(
        default=constants.MAX_CONCURRENT_TASKS,
        ge=1,
        le=constants.MAX_CONCURRENT_TASKS,
        title="Most videos at once",
        description="Most generations of one batch that are under way at once. APIXO allows 1,000.",
    )
    price_per_second: Decimal | None = Field(
        default=None,
        ge=0,
        title="Price per second of video",
        description=(
            "What you pay for a second of video of sora-2, in your currency. For estimates and max_spend; empty means "
            "unknown."
        ),
    )
    prices: dict[str, Price] = Field(
        default_factory=dict,
        title="Prices of other models",
        description=(
            'What you pay for each model, by its name: `{"MODEL": {"per_second": "…"}}`, or `per_video` where the '
            "length does not matter. A model that is not named has no known price."
        ),
    )
    currency: str | None = Field(
        default=None,
        max_length=10,
        title="Currency",
        description="The currency of all prices, such as USD. It is written down with what a video cost.",
    )
    max_spend_per_day: Decimal | None = Field(
        default=None,
        ge=0,
        title="Most to spend per day",
        description=(
            "The most that all runs together may spend in a day (UTC), by the prices here; empty means no limit. Every "
            "run that archives in the same bucket counts, on any machine. Each model that is asked needs a price."
        ),
    )
    max_spend_per_month: Decimal | None = Field(
        default=None,
        ge=0,
        title="Most to spend per month",
        description="The same for a month (UTC).",
    )
    balance_warning_below: Decimal | None = Field(
        default=None,
        ge=0,
        title="Balance warning below",
        description=(
            "When a batch starts and the APIXO account has less than this (USD), the event `sora.balance.low` is sent; "
            "empty means never."
        ),
    )
    require_balance: bool = Field(
        default=False,
        title="Require balance",
        description=(
            "Lets a batch fail at its start, before anything is paid, where the APIXO account has less than its videos "
            "cost. Off only warns."
        ),
    )
    moderation_retries: int = Field(
        default=0,
        ge=0,
        le=3,
        title="Moderation retries",
        description=(
            "How often a video that was judged by its output, or by a detector such as NSFW, is submitted again, and "
            "paid again. Such judgments are sometimes mistaken. One about the prompt or an image is never tried again."
        ),
    )
    result_valid_hours: float = Field(
        default=24.0 * constants.RESULT_DAYS,
        gt=0,
        title="Results are valid for (hours)",
        description=(
            "How long APIXO keeps a result. It documents 15 days (360 hours), on older pages 24 hours. For messages "
            "and warnings: every result is fetched at once."
        ),
    )
    result_check_url: str | None = Field(
        default=None,
        title="Result check URL",
        description=(
            "A small file on a public host, which dry runs and `sora doctor` fetch by the way that results take. "
            "Empty: the API's own host is asked."
        ),
    )
    allow_private_hosts: bool = Field(
        default=False,
        title="Allow private hosts",
        description=(
            "Lets image and result URLs point into private networks and to this machine. For local use only. "
            "Link-local addresses, where clouds keep credentials, stay refused."
        ),
    )

    @field_validator("base_url", "callback_url")
    @classmethod
    def _plain_base_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            url = httpx.URL(value.strip())
        except httpx.InvalidURL as error:
            raise ValueError(f"is not a URL: {error}") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError("must be a whole address such as https://api.example.com")
        if url.userinfo or "?" in value or "#" in value:
            raise ValueError("must be a plain address, without user name, query or fragment")
        return str(url).rstrip("/")

    @field_validator("prices", mode="before")
    @classmethod
    def _prices_as_text(cls, value: object) -> object:
        """`sora setup` takes every field from the environment, as text."""
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
            raise ValueError("must start with https://, or the API key would travel in clear; http:// is for loopback")
        return value

    @model_validator(mode="after")
    def _callbacks_are_signed(self) -> Self:
        if self.callback_url and self.callback_secret is None:
            raise ValueError("callback_url needs callback_secret: unsigned callback URLs could be guessed")
        if self.callback_secret is None:
            return self
        text = _text(self.callback_secret).strip()
        if not text:
            raise ValueError("callback_secret is an empty Secret block: anyone could sign; give it a long random text")
        if len(text) < CALLBACK_SECRET_CHARACTERS:
            raise ValueError(
                f"callback_secret has {len(text)} characters and could be guessed; give it a random text of "
                f"{CALLBACK_SECRET_CHARACTERS} or more, such as `openssl rand -hex 32` prints"
            )
        return self

    def client(self, **options: Any) -> ApixoClient:
        """A client with this block's key, address and limits, which can submit, and so can spend money.

        Args:
            options: further arguments of `apixo.ApixoClient`.
        """
        return ApixoClient(_text(self.api_key), **(self._client_options() | options))

    def status_client(self, **options: Any) -> StatusClient:
        """The same without the paid call.

        Args:
            options: further arguments of `apixo.StatusClient`.
        """
        return StatusClient(_text(self.api_key), **(self._client_options() | options))

    def _client_options(self) -> dict[str, Any]:
        return {
            "base_url": self.base_url,
            "requests_per_minute": self.requests_per_minute,
            "submit_timeout_seconds": self.submit_timeout_seconds,
            "retry_delay_seconds": self.retry_delay_seconds,
        }

    def callback_token(self, key: str, attempt_number: int = 1) -> str:
        """The token that proves a callback URL is ours: HMAC-SHA256, in hex, of what it calls about.

        That is the key for the first attempt and `key/number` for a later one. No key holds a slash, so no token has
        two meanings.
        """
        about = _callback_path(key, attempt_number)
        return hmac.new(_text(self._secret()).encode(), about.encode(), hashlib.sha256).hexdigest()

    def _secret(self) -> Secret[Any]:
        if self.callback_secret is None:
            raise ValueError("this apixo-api block has no callback_secret; set one to use callbacks")
        return self.callback_secret

    def callback_url_for(self, key: str, attempt_number: int = 1) -> str | None:
        """The address the provider calls when the task of this attempt ends; None in poll mode.

        Each attempt has its own: a late call for the first one must not be taken for the second one's.
        """
        if not self.callback_url:
            return None
        about = _callback_path(key, attempt_number)
        return f"{self.callback_url}/apixo/{about}/{self.callback_token(key, attempt_number)}"

    def callback_check_url(self) -> str:
        """Where a setup check asks the receiver which blocks it has. It cannot be guessed without the secret."""
        return f"{self.callback_url}/apixo/{CHECK_KEY}/0/{self.callback_token(CHECK_KEY, 0)}"

    def blocks_digest(self, bucket: str) -> str:
        """The receiver's answer: alike where both secrets, the API's address and the archive's bucket are alike.

        The store's endpoint is left out: a container may well know it by another name.
        """
        about = "\n".join([self.callback_token(CHECK_KEY, 0), self.base_url, bucket])
        return hmac.new(_text(self.api_key).encode(), about.encode(), hashlib.sha256).hexdigest()

    def sealing_key(self) -> bytes:
        """32 bytes that follow from both secrets: what the receiver hands to waiting runs is sealed with them."""
        about = f"handed over\n{_text(self.api_key)}"  # no token is made of it: no key of a video holds a line's end
        return hmac.digest(_text(self._secret()).encode(), about.encode(), "sha256")

    def price(self, model: str, seconds: int | None) -> Decimal | None:
        """What a video of this model and length costs; None: no price is known."""
        return price_of(model, seconds, self.price_list)

    @property
    def price_list(self) -> dict[str, Price]:
        """The price of each model that has one. `prices` wins over `price_per_second`, which is that of sora-2."""
        default = self.price_per_second
        return ({} if default is None else {constants.DEFAULT_MODEL: Price(per_second=default)}) | self.prices

    def timing(self, model: str) -> tuple[float, float]:
        """Seconds until the first question about a task of this model, and between two questions.

        The block's own numbers count for every model. Where it has the advice for sora-2, which is the default, the
        advice for the model counts.
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


def _text(secret: Secret[Any]) -> str:
    """A Secret's text as it was typed. `Secret.get()` would turn a key of digits into a number."""
    return str(secret.value.get_secret_value())
