"""The sandbox's settings, and the provider's documented numbers."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from apixo import catalog

#: The shortest and longest time of a generation, in seconds, by the video's duration (APIXO's documentation).
GENERATION_SECONDS: dict[int, tuple[float, float]] = {4: (120, 240), 8: (180, 300), 12: (240, 360)}
#: The length of a video if the request does not specify it, in seconds. Our choice.
UNASKED_SECONDS = 5
#: The fraction of its time that a task is `pending`, before `processing`. Our choice: it is not documented.
PENDING_PART = 0.1
#: APIXO: prompts of up to 10,000 characters.
PROMPT_LIMIT = 10_000
#: APIXO: JPG, PNG or WebP, at most 10 MB per image.
IMAGE_LIMIT_BYTES = 10 * 1024 * 1024
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")
#: How long the sandbox waits for an image or a callback's receiver. Real traffic, so `speed` does not shorten it.
NETWORK_TIMEOUT_SECONDS = 10.0
#: APIXO: a callback that is not answered with 200 is sent three more times, after these waits. Divided by `speed`.
CALLBACK_PAUSES_SECONDS = (30.0, 120.0, 600.0)
#: A prompt that contains this word fails with `CONTENT_VIOLATION`, to try out such a failure.
FORBIDDEN_WORD = "forbidden"
SECONDS_A_DAY = 86_400.0


class SandboxSettings(BaseModel):
    """How the sandbox behaves. The defaults are the provider's documented behavior at its own pace."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    api_key: str = Field("sandbox-key", description="The only key that is accepted.", min_length=1)
    speed: float = Field(
        1, gt=0, description="How many times faster than real time: every duration of the provider is divided by it."
    )
    balance: float = Field(
        10_000, description="The account's initial balance; a task that costs more than is left gets a 402."
    )
    task_price: float = Field(1, ge=0, description="What each task costs. An invented number.")
    gone_models: tuple[str, ...] = Field((), description="Models that are no longer offered: a submit gets a 404.")
    other_models: tuple[str, ...] = Field(
        (), description="Further models that are offered; their input is not checked."
    )
    requests_per_minute: int = Field(
        10_000, ge=0, description="Calls accepted in any sliding minute (divided by `speed`); one more gets a 429."
    )
    max_concurrent_tasks: int = Field(
        1_000, ge=0, description="Unfinished tasks at one time; a submit beyond them gets a 429."
    )
    result_days: float = Field(15, gt=0, description="Days for which a result URL is valid, divided by `speed`.")
    video_height: int = Field(
        720, ge=32, le=1080, description="Short side of the videos in pixels. Tests use 90: such a video costs 0.15 s."
    )
    data_dir: Path | None = Field(
        None, description="Where videos are stored and reused. Default: a temporary folder, removed at exit."
    )

    def offers(self, model: str) -> bool:
        """Whether submissions for this model are accepted."""
        return model not in self.gone_models and (model in self.other_models or catalog.find(model) is not None)

    def scaled(self, seconds: float) -> float:
        """A duration of the provider, in seconds of this sandbox."""
        return seconds / self.speed
