"""What can be asked of the API: one video."""

from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from apixo.addresses import normalize_url
from apixo.constants import MAX_PROMPT_CHARACTERS, PROVIDER

Mode = Literal["text-to-video", "image-to-video"]
AspectRatio = Literal["landscape", "portrait"]
Duration = Literal[4, 8, 12]


def _image_url(url: str) -> str:
    url = normalize_url(url)  # what is checked here, and tried out before paying, is what the provider gets
    if any(letter.isspace() or not letter.isprintable() for letter in url):
        raise ValueError("holds blanks or control characters in its host; check how it is written")
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        # Neither its text nor itself: urllib repeats a part of the address, which may be a password.
        raise ValueError("is not a URL; give an http:// or https:// address of a JPG, PNG or WebP") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError(
            f"has the scheme {parts.scheme[:20] or 'none'!r}, but the provider fetches images by http:// or https:// "
            "only"
        )
    if not host:
        raise ValueError("names no host; give a whole address such as https://example.com/start.jpg")
    if parts.username is not None or parts.password is not None:
        raise ValueError("carries a user name or password; use an address that needs none")
    return url


ImageUrl = Annotated[str, StringConstraints(strip_whitespace=True, max_length=2_000), AfterValidator(_image_url)]


class VideoRequest(BaseModel):
    """One video as the API takes it. Whatever the API would refuse is refused here, before anything is sent."""

    # Inputs stay out of messages: a refused address may hold a password, and messages end in logs.
    model_config = ConfigDict(extra="forbid", frozen=True, title="Video request", hide_input_in_errors=True)

    prompt: Annotated[str, StringConstraints(min_length=1, max_length=MAX_PROMPT_CHARACTERS)] = Field(
        title="Prompt",
        description=(
            "What the video shows, in up to 10,000 characters. Clear, structured prompts succeed more often: "
            "camera, lighting, emotional tone, action, scene transitions."
        ),
    )
    duration: Duration = Field(
        default=4,
        title="Duration (seconds)",
        description="Length of the video in seconds: 4, 8 or 12. Try with 4 first; longer ones cost more.",
    )
    aspect_ratio: AspectRatio = Field(
        default="landscape",
        title="Aspect ratio",
        description="`landscape` for video platforms and desktop, `portrait` for short-video platforms and mobile.",
    )
    image_urls: list[ImageUrl] = Field(
        default_factory=list,
        title="Image URLs",
        description=(
            "For image-to-video: public addresses of JPG, PNG or WebP images, at most 10 MB each. "
            "The image is the start or key frame."
        ),
    )
    mode: Mode | None = Field(
        default=None,
        title="Mode",
        description="`text-to-video` or `image-to-video`. Leave empty: it follows from the image URLs.",
    )
    remove_watermark: bool = Field(
        default=True, title="Remove watermark", description="Off keeps the provider's watermark in the video."
    )

    @model_validator(mode="after")
    def _blank_prompt(self) -> Self:
        if not self.prompt.strip():
            raise ValueError("prompt is blank; describe the video in a sentence")
        return self

    @model_validator(mode="after")
    def _mode_fits_images(self) -> Self:
        follows: Mode = "image-to-video" if self.image_urls else "text-to-video"
        if self.mode is None:
            object.__setattr__(self, "mode", follows)  # frozen, and still the one place where the mode is decided
        elif self.mode != follows:
            wants = "needs at least one URL in image_urls" if not self.image_urls else "takes no image_urls"
            raise ValueError(
                f"mode {self.mode!r} {wants}; give {'one' if not self.image_urls else 'none'}, or leave mode empty"
            )
        return self

    def body(self, callback_url: str | None = None) -> dict[str, Any]:
        """The JSON body of the paid call.

        Args:
            callback_url: where the provider reports the end. With it the request type is `callback`, else `async`.
        """
        fields: dict[str, Any] = {
            "mode": self.mode,
            "prompt": self.prompt,
            "duration": self.duration,
            "aspect_ratio": self.aspect_ratio,
            "remove_watermark": self.remove_watermark,
        }
        if self.image_urls:
            fields["image_urls"] = list(self.image_urls)
        body: dict[str, Any] = {
            "request_type": "callback" if callback_url else "async",
            "provider": PROVIDER,
            "input": fields,
        }
        if callback_url:
            body["callback_url"] = callback_url
        return body
