"""The request body of a generation, checked as the documentation describes it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from deployments.sandbox.settings import PROMPT_LIMIT


class GenerationInput(BaseModel):
    """What is to be filmed. Strict: the string "4" is not the number 4."""

    model_config = ConfigDict(strict=True, frozen=True)

    mode: Literal["text-to-video", "image-to-video"]
    prompt: str = Field(min_length=1, max_length=PROMPT_LIMIT)
    duration: Literal[4, 8, 12]
    aspect_ratio: Literal["landscape", "portrait"] = "landscape"
    image_urls: list[str] | None = Field(None, validate_default=True)
    remove_watermark: bool = True

    @field_validator("duration", mode="before")
    @classmethod
    def _whole_seconds(cls, value: object) -> object:
        # To Python 4.0 and True are equal to numbers; in the documented JSON a duration is an integer.
        if type(value) is not int:
            raise ValueError("must be an integer: 4, 8 or 12")
        return value

    @field_validator("prompt")
    @classmethod
    def _says_something(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must not be blank")
        return value

    @field_validator("image_urls")
    @classmethod
    def _needs_an_image(cls, value: list[str] | None, info: ValidationInfo) -> list[str] | None:
        if info.data.get("mode") == "image-to-video" and not value:
            raise ValueError("is required for image-to-video")
        return value


class GenerationRequest(BaseModel):
    """The body of `generateTask`. Unknown fields are ignored."""

    model_config = ConfigDict(strict=True, frozen=True)

    request_type: Literal["async", "callback"] = "async"
    callback_url: str | None = Field(None, validate_default=True)
    provider: Literal["official"] = "official"
    input: GenerationInput

    @model_validator(mode="after")
    def _a_callback_needs_an_address(self) -> Self:
        if self.request_type == "callback":
            if not self.callback_url:
                raise ValueError("callback_url is required when request_type is callback")
            if not self.callback_url.startswith(("http://", "https://")):
                raise ValueError("callback_url must be an http or https address")
        return self

    @property
    def notify(self) -> str | None:
        """Where to call back, if at all."""
        return self.callback_url if self.request_type == "callback" else None


def explain(error: ValidationError) -> str:
    """What is wrong with a body, naming each field: the message of a 400."""
    parts = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        message = problem["msg"].removeprefix("Value error, ")
        where = ".".join(str(step) for step in problem["loc"])
        parts.append(f"{where}: {message}" if where else message)
    return f"Invalid parameters: {'; '.join(parts)}"
