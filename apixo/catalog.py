"""The catalog of video models: what each one supports, as data. `models.json` is ours; a user's own file extends it.

`VideoModel.problems` checks the request as it will be sent to the provider. So the same check serves both the client,
before it pays, and the sandbox that receives the request.
"""

import json
import os
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from apixo.constants import MAX_IMAGE_BYTES, MAX_PROMPT_CHARACTERS
from apixo.errors import describe_problem

USER_CATALOG: Final = "SORA_MODELS"
"""The environment variable with the path of the user's own catalog. It is not a setting of the API block, because
requests are checked wherever they are created (a form, a command, an upstream flow), before any block is loaded."""

NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Valid model names: the name becomes part of the URL path of both calls."""

MAX_OPTIONS_CHARACTERS: Final = 20_000
"""Twice the longest prompt. APIXO documents no limit."""

COMMON: Final = frozenset(
    {"prompt", "mode", "duration", "aspect_ratio", "image_urls", "remove_watermark", "model", "provider"}
)
"""Request fields, whose names an option cannot have."""

Shape = Literal["landscape", "portrait", "square"]
ImageFormat = Literal["JPEG", "PNG", "WEBP"]
IMAGE_FORMATS: Final[tuple[ImageFormat, ...]] = ("JPEG", "PNG", "WEBP")
FieldProblem = tuple[str, str]
"""The provider's name of a field, and what is allowed there. Never the value, which may be a secret."""

_RATIO: Final = re.compile(r"(\d{1,5})[:*x](\d{1,5})")
_RIGHT_TYPE: Final[dict[str, tuple[type, ...]]] = {"string": (str,), "integer": (int,), "boolean": (bool,)}


def _seconds(value: object) -> object:
    """Expands `"3-15"` to the whole seconds from 3 to 15."""
    if isinstance(value, str) and (found := re.fullmatch(r"(\d{1,4})-(\d{1,4})", value)):
        if int(found[1]) > int(found[2]):
            raise ValueError("a range of seconds goes from the lowest to the highest")
        return tuple(range(int(found[1]), int(found[2]) + 1))
    return value


def _ascending(limits: tuple[int, int | None]) -> tuple[int, int | None]:
    least, most = limits
    if least < 0 or (most is not None and most < least):
        raise ValueError("must be a minimum of 0 or more, and a maximum")
    return limits


def _spelled(value: object) -> str:
    """An option's value as a catalog spells it: as in JSON, but text without quotes."""
    return json.dumps(value) if isinstance(value, bool) else str(value)


Seconds = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_seconds)]
Limits = Annotated[tuple[int, int | None], AfterValidator(_ascending)]
Pause = Annotated[float, Field(gt=0, le=86_400)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Value(_Part):
    """What one value of an option requires of the request. Empty: nothing."""

    images: Annotated[tuple[int, int], AfterValidator(_ascending)] | None = Field(
        default=None, description="Minimum and maximum number of images."
    )
    modes: tuple[str, ...] = Field(default=(), description="The modes that allow it.")
    ratios: tuple[str, ...] = Field(default=(), description="The aspect ratios that allow it, as they are sent.")

    def problem(self, mode: str, images: int, ratio: object) -> str | None:
        """The requirement that the request does not meet; None if it meets all."""
        if self.modes and mode not in self.modes:
            return f"is for mode {one_of(self.modes)} only"
        if self.images is not None and not self.images[0] <= images <= self.images[1]:
            return f"requires {one_of(range(self.images[0], self.images[1] + 1))} image_urls"
        if self.ratios and ratio not in self.ratios:
            return f"is for aspect_ratio {one_of(self.ratios)} only"
        return None


class Option(_Part):
    """A field that a model has beyond the common ones."""

    type: Literal["string", "integer", "boolean", "any"] = "any"
    allowed: tuple[str | int, ...] = Field(default=(), description="Its allowed values; empty: any of the type.")
    required: bool = False
    modes: tuple[str, ...] = Field(default=(), description="The modes that have it; empty: all.")
    max_characters: int | None = None
    values: dict[str, Value] = Field(default_factory=dict, description="What some of its values require.")

    @model_validator(mode="after")
    def _has_these_values(self) -> Self:
        """Rejects an entry of `values` that could never apply."""
        allowed = (True, False) if self.type == "boolean" else self.allowed
        if allowed and (unknown := self.values.keys() - set(map(_spelled, allowed))):
            raise ValueError(f"{one_of(sorted(unknown))} is not one of its values")
        return self

    def problem(self, value: object) -> str | None:
        """What is allowed, if this value is not; None if it is."""
        if self.type != "any" and type(value) not in _RIGHT_TYPE[self.type]:
            return f"must be {'true or false' if self.type == 'boolean' else f'of type {self.type}'}"
        if self.allowed and value not in self.allowed:
            return f"must be {one_of(self.allowed)}"
        if self.max_characters is not None and isinstance(value, str) and len(value) > self.max_characters:
            return f"must have at most {self.max_characters:,} characters"
        return None


class Mode(_Part):
    """One of a model's modes."""

    images: Limits = Field(description="Minimum and maximum number of images; null: no known limit.")
    durations: Seconds = Field(default=(), description="Instead of the model's durations; empty: those.")

    def accepts(self, images: int) -> bool:
        """Whether a request with this many images can have this mode."""
        least, most = self.images
        return images >= least and (most is None or images <= most)


class ImageLimits(_Part):
    """Which images one or several models accept."""

    max_image_bytes: int = Field(default=MAX_IMAGE_BYTES, ge=1)
    image_formats: tuple[ImageFormat, ...] = Field(
        default=IMAGE_FORMATS, min_length=1, description="As detected from the file's bytes."
    )
    image_side_pixels: Limits = Field(
        default=(1, None), description="Minimum and maximum pixels on each side of an image; null: no known limit."
    )

    def image_problem(self, kind: ImageFormat, width: int, height: int) -> str | None:
        """What is allowed, if this image is not; None if it is."""
        least, most = self.image_side_pixels
        if not self.image_formats:
            return f"is a {kind}, but the model and its fallback models have no format in common"
        if kind not in self.image_formats:
            return f"is a {kind}, but the model accepts {one_of(self.image_formats)}"
        if min(width, height) < least:
            return f"has {width} x {height} pixels, but the model requires at least {least:,} on each side"
        if most is not None and max(width, height) > most:
            return f"has {width} x {height} pixels, but the model allows at most {most:,} on each side"
        return None

    def __and__(self, other: "ImageLimits") -> "ImageLimits":
        """The limits that satisfy both. Not validated: no image may satisfy them."""
        (least, most), (other_least, other_most) = self.image_side_pixels, other.image_side_pixels
        known = [pixels for pixels in (most, other_most) if pixels is not None]
        return ImageLimits.model_construct(
            max_image_bytes=min(self.max_image_bytes, other.max_image_bytes),
            image_formats=tuple(kind for kind in self.image_formats if kind in other.image_formats),
            image_side_pixels=(max(least, other_least), min(known, default=None)),
        )


class VideoModel(ImageLimits):
    """What one model supports. The defaults are what the provider documents for video models in general."""

    source: str = Field(description="Where this comes from, and what is unknown.")
    provider: str | None = Field(default=None, description="The request's `provider`; null: omitted.")
    modes: dict[str, Mode] = Field(min_length=1, description="By name; default: the first that accepts the images.")
    prompt_characters: Annotated[tuple[int, int], AfterValidator(_ascending)] = (1, MAX_PROMPT_CHARACTERS)
    durations: Seconds = Field(default=(), description="In seconds; empty: the model has no duration.")
    default_duration: int | None = Field(default=None, description="Null: the first of its durations.")
    ratios: dict[str, str] = Field(
        default_factory=dict, description="Aspect ratios as requests name them, and as they are sent. First: default."
    )
    other_ratios: bool = Field(default=False, description="Whether it accepts others of the form 4:3.")
    ratio_field: str = Field(default="aspect_ratio", description="The field in which the ratio is sent.")
    ratio_modes: tuple[str, ...] = Field(default=(), description="The modes in which it is sent; empty: all.")
    remove_watermark: bool = Field(default=False, description="Whether it has the field of this name.")
    options: dict[str, Option] = Field(default_factory=dict, description="Its fields beyond the common ones.")
    other_options: bool = Field(default=False, description="Whether it has others that are not listed.")
    options_with_images: dict[str, Any] = Field(
        default_factory=dict, description="Options that a request with images gets unless it sets them."
    )
    first_wait_seconds: Pause = Field(default=60, description="APIXO on video in general: first after 60 s, …")
    poll_interval_seconds: Pause = Field(default=15, description="… then every 15 s.")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """Rejects entries that could never apply, or that would change a request before it is paid for."""
        durations = {*self.durations, *(one for mode in self.modes.values() for one in mode.durations)}
        if self.default_duration is not None and self.default_duration not in durations:
            raise ValueError(f"default_duration {self.default_duration} is not one of its durations")
        options = self.options.keys() | self.options_with_images.keys()
        if twice := COMMON & (options | ({self.ratio_field} - {"aspect_ratio"})):
            raise ValueError(f"{one_of(sorted(twice))} is a request field: it cannot be an option or the ratio_field")
        values = [value for option in self.options.values() for value in option.values.values()]
        parts: list[Option | Value] = [*self.options.values(), *values]
        if unknown := {*self.ratio_modes, *(mode for part in parts for mode in part.modes)} - self.modes.keys():
            raise ValueError(f"{one_of(sorted(unknown))} is not one of its modes")
        own = self.options.get(self.ratio_field)  # the ratio may be given as an option, too
        ratios = {ratio for value in values for ratio in value.ratios}
        if own is not None:
            ratios = ratios - set(map(str, own.allowed)) if own.allowed else set()
        if not self.other_ratios and (unknown := ratios - set(self.ratios.values())):
            raise ValueError(f"{one_of(sorted(unknown))} is not one of its ratios as they are sent")
        return self

    def mode_for(self, mode: str | None, images: int) -> str:
        """The mode of a request: its own, else the first mode that accepts this many images, else the closest one."""
        if mode:
            return mode
        names = list(self.modes)
        fitting = [name for name in names if self.modes[name].accepts(images)]
        with_images = [name for name in names if images and self.modes[name].images[1] != 0]
        return (fitting or with_images or names)[0]

    def durations_in(self, mode: str) -> tuple[int, ...]:
        """The durations it supports in a mode, in seconds."""
        return (self.modes[mode].durations if mode in self.modes else ()) or self.durations

    def seconds(self, duration: int | None, mode: str) -> int | None:
        """The duration to request: the given one, else the default; None: the model has no duration."""
        if duration is not None:
            return duration
        allowed = self.durations_in(mode)
        return self.default_duration if self.default_duration in allowed else next(iter(allowed), None)

    def ratio(self, requested: str | None, mode: str) -> str | None:
        """The aspect ratio as it is sent; None: it is not sent."""
        if self.ratio_modes and mode not in self.ratio_modes:
            return None  # the image decides
        requested = requested or next(iter(self.ratios), None)
        return None if requested is None else self.ratios.get(requested, requested)

    def problems(self, sent: Mapping[str, Any], name: str) -> list[FieldProblem]:
        """What is wrong with the `input` of a request as the provider would get it, field by field. Pure."""
        mode = sent.get("mode")
        if not isinstance(mode, str) or mode not in self.modes:
            return [("mode", f"must be {one_of(self.modes)} with {name}")]
        return [
            *self._image_count_problems(mode, len(sent.get("image_urls") or ()), name),
            *self._prompt_problems(sent.get("prompt"), name),
            *self._duration_problems(sent.get("duration"), mode, name),
            *self._ratio_problems(sent.get(self.ratio_field), name),
            *self._option_problems(sent, mode, name),
        ]

    def _image_count_problems(self, mode: str, count: int, name: str) -> Iterable[FieldProblem]:
        least, most = self.modes[mode].images
        if count < least:
            number = "one URL" if least == 1 else f"{least} URLs"
            yield "mode", f"{mode!r} needs at least {number} in image_urls; give {number}, or leave mode empty"
        elif most == 0 and count:
            yield "mode", f"{mode!r} does not support image_urls; give none, or leave mode empty"
        elif most is not None and count > most:
            yield "image_urls", f"must be at most {most} with {name}, in mode {mode}"

    def _prompt_problems(self, prompt: object, name: str) -> Iterable[FieldProblem]:
        least, most = self.prompt_characters
        if not isinstance(prompt, str) or not least <= len(prompt) <= most:
            yield "prompt", f"must be text of {least:,} to {most:,} characters with {name}"

    def _duration_problems(self, duration: object, mode: str, name: str) -> Iterable[FieldProblem]:
        allowed = self.durations_in(mode)
        if duration is None and not allowed:
            return
        if not allowed:
            yield "duration", f"is not supported by {name}; leave it empty"
        elif type(duration) is not int or duration not in allowed:
            near = ""
            if type(duration) is int:
                distance = min(abs(duration - one) for one in allowed)
                near = f"; the nearest is {one_of([one for one in allowed if abs(duration - one) == distance])}"
            yield "duration", f"must be {one_of(allowed)} with {name}{near}"

    def _ratio_problems(self, ratio: object, name: str) -> Iterable[FieldProblem]:
        if ratio is None or ratio in self.ratios.values() or self.ratio_field in self.options:
            return  # a ratio field that is also an option is checked as an option
        if not self.ratios and not self.other_ratios:
            yield self.ratio_field, f"is not supported by {name}; leave it empty"
        elif not (self.other_ratios and isinstance(ratio, str) and _RATIO.fullmatch(ratio)):
            others = ", or another such as 4:3," if self.other_ratios else ""
            yield self.ratio_field, f"must be {one_of(self.ratios)}{others} with {name}"

    def _option_problems(self, sent: Mapping[str, Any], mode: str, name: str) -> Iterable[FieldProblem]:
        for option, known in self.options.items():
            here = not known.modes or mode in known.modes
            if option not in sent:
                if known.required and here:
                    yield option, f"is required by {name}: {known.problem(None) or 'give it'}"
            elif not here:
                yield option, f"is for mode {one_of(known.modes)} only with {name}"
            elif (wrong := known.problem(sent[option])) is not None:
                yield option, f"{wrong} with {name}"
            else:
                yield from self._value_problems(option, sent, mode, name)

    def _value_problems(self, name: str, sent: Mapping[str, Any], mode: str, model: str) -> Iterable[FieldProblem]:
        """What an option's value is incompatible with, and which other values are compatible."""
        option, images, ratio = self.options[name], len(sent.get("image_urls") or ()), sent.get(self.ratio_field)

        def wrong(value: str) -> str | None:
            return option.values[value].problem(mode, images, ratio) if value in option.values else None

        if (found := wrong(_spelled(sent[name]))) is not None:
            fitting = [value for value in map(_spelled, option.allowed) if wrong(value) is None]
            yield name, f"{found} with {model}{f'; {one_of(fitting)} would do' if fitting else ''}"


def shape_of(ratio: str | None) -> Shape | None:
    """The orientation of a video with this aspect ratio or size; None: the text does not say."""
    if ratio in ("landscape", "portrait"):
        return "landscape" if ratio == "landscape" else "portrait"
    found = _RATIO.fullmatch(ratio or "")
    if found is None:
        return None
    width, height = int(found[1]), int(found[2])
    return "landscape" if width > height else "portrait" if width < height else "square"


def can_be_sent(options: Mapping[str, Any]) -> bool:
    """Whether options can be written as JSON. Checked before the claim: later, a failure would look like a payment."""
    try:
        text = json.dumps(dict(options), allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError, RecursionError):
        return False
    return len(text) <= MAX_OPTIONS_CHARACTERS


def one_of(values: Iterable[object]) -> str:
    """Lists values as `4, 8 or 12`, and four or more consecutive integers as `3 to 15`."""
    listed = list(values)
    numbers = [value for value in listed if isinstance(value, int)]
    if len(numbers) == len(listed) > 3 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    *first, last = [str(value) for value in listed]
    return f"{', '.join(first)} or {last}" if first else last


UNKNOWN: Final = VideoModel(
    source="Not in the catalog.",
    modes={"text-to-video": Mode(images=(0, 0)), "image-to-video": Mode(images=(1, None))},
    other_ratios=True,
    other_options=True,
)
"""A model that is not in the catalog: its requests are sent as they were given."""

_MODELS: Final = TypeAdapter(dict[Annotated[str, Field(pattern=NAME_PATTERN)], VideoModel])
OURS: Final = Path(__file__).with_name("models.json")


@lru_cache
def _read(path: Path) -> dict[str, VideoModel]:
    return _MODELS.validate_json(path.read_bytes().removeprefix(BOM_UTF8))


def _users(environ: Mapping[str, str]) -> tuple[dict[str, VideoModel], str | None]:
    path = environ.get(USER_CATALOG, "").strip()
    if not path:
        return {}, None
    try:
        return _read(Path(path)), None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", "")
        if isinstance(error, ValidationError):
            why = describe_problem(error.errors(include_url=False)[0])
        return {}, f"{USER_CATALOG} points to an invalid catalog ({why or 'not a file'})"


def models(environ: Mapping[str, str] = os.environ) -> dict[str, VideoModel]:
    """Every known model by its name: ours, and those of the user's own catalog, which take precedence.

    A user's catalog that cannot be read is ignored here, because videos that are already paid must not depend on it.
    `problem` reports it to code that is about to pay.
    """
    return _read(OURS) | _users(environ)[0]


def problem(environ: Mapping[str, str] = os.environ) -> str | None:
    """Why the user's own catalog cannot be read; None if it can, or if there is none."""
    return _users(environ)[1]


def find(name: str) -> VideoModel | None:
    """The catalog's entry of a model; None: there is none, and its requests are sent unchecked."""
    return models().get(name)
