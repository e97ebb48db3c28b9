"""Checks the request body of a generation: for sora-2 strictly as documented, for other models by the catalog."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from apixo import catalog
from apixo.constants import DEFAULT_MODEL
from apixo.errors import describe_problem
from deployments.sandbox.settings import PROMPT_LIMIT, UNASKED_SECONDS


class AnyInput(BaseModel):
    """The input for a video, for any model. Strict: the string "4" is not the number 4."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    mode: str = ""
    prompt: str = ""
    duration: int | None = None
    aspect_ratio: str | None = None
    size: str | None = None
    image_urls: list[str] | None = None
    remove_watermark: bool = True

    @property
    def seconds(self) -> int:
        """The video's length."""
        return self.duration or UNASKED_SECONDS

    @property
    def ratio(self) -> str:
        """The video's shape, in a form that `video_size` accepts."""
        requested = self.size or self.aspect_ratio
        return requested if requested and requested != "auto" else "landscape"


class GenerationInput(AnyInput):
    """The input for a video, for sora-2."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    mode: Literal["text-to-video", "image-to-video"]
    prompt: str = Field(min_length=1, max_length=PROMPT_LIMIT)
    duration: Literal[4, 8, 12]
    aspect_ratio: Literal["landscape", "portrait"] = "landscape"
    image_urls: list[str] | None = Field(None, validate_default=True)

    @field_validator("duration", mode="before")
    @classmethod
    def _whole_seconds(cls, value: object) -> object:
        # In Python, 4.0 and True are equal to integers; in the documented JSON, a duration is an integer.
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


class AnyRequest(BaseModel):
    """The body of `generateTask`, of any model. Unknown fields are ignored."""

    model_config = ConfigDict(strict=True, frozen=True)

    request_type: Literal["async", "callback"] = "async"
    callback_url: str | None = None
    provider: Literal["auto", "value", "official"] | None = None
    input: AnyInput

    @model_validator(mode="after")
    def _a_callback_needs_an_address(self) -> Self:
        if self.request_type == "callback":
            if not self.callback_url:
                raise ValueError("callback_url is required when request_type is callback")
            if not self.callback_url.startswith(("http://", "https://")):
                raise ValueError("callback_url must be an http or https URL")
        return self

    @property
    def active_callback_url(self) -> str | None:
        """The callback URL, if there is one."""
        return self.callback_url if self.request_type == "callback" else None


class GenerationRequest(AnyRequest):
    """The body of `generateTask/sora-2`."""

    provider: Literal["official"] = "official"
    input: GenerationInput


class InvalidInputError(Exception):
    """The model does not accept the body. The message becomes that of a 400."""


def read_request(model: str, body: bytes) -> AnyRequest:
    """The body of a submission for a model.

    Raises:
        InvalidInputError: the model does not accept it.
    """
    try:
        if model == DEFAULT_MODEL:
            return GenerationRequest.model_validate_json(body)
        requested = AnyRequest.model_validate_json(body)
    except ValidationError as error:
        raise InvalidInputError(explain(error)) from error
    known = catalog.find(model)
    sent = requested.input.model_dump(exclude_unset=True)
    if known is not None and (problems := known.problems(sent, model)):
        listed = "; ".join(f"input.{field}: {problem}" for field, problem in problems)
        raise InvalidInputError(f"Invalid parameters: {listed}")
    return requested


def explain(error: ValidationError) -> str:
    """What is wrong with a body, field by field: the message of a 400."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    return f"Invalid parameters: {'; '.join(map(describe_problem, problems))}"
