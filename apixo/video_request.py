"""The request for one video."""

import functools
import operator
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Final, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from apixo import catalog
from apixo.catalog import ImageLimits, Shape, VideoModel
from apixo.constants import DEFAULT_MODEL, MAX_PROMPT_CHARACTERS
from apixo.urls import ImageUrl

STORED: Final = {"stored": True}
"""The validation context for requests that were checked when they were created. Catalogs change, but paid requests must
stay readable."""

UNSUPPORTED: Final = "unsupported"
"""The type of errors that say what a model supports. Their messages never contain a value."""

MAX_SECONDS: Final = 3_600
"""The longest video of an unknown model: a typo must not be paid for."""

FieldProblem = tuple[tuple[str, ...], str]
"""A field of a request, and what its model supports there."""

_OPTION_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")


ModelName = Annotated[str, StringConstraints(pattern=catalog.NAME_PATTERN)]
# A tag is a label. It has no @ and no slash, so it cannot be a URL with a password.
Tag = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^\w[\w .:+-]{0,49}$")]


def _select(values: Iterable[object], title: str, kind: str) -> Callable[[dict[str, Any]], None]:
    """Lets a form built from the JSON schema, such as Prefect's, offer these values and accept any other.

    A field without a default may be left empty.
    """

    def change(schema: dict[str, Any]) -> None:
        schema["anyOf"] = [{"title": title, "type": kind, "enum": list(values)}, {"title": "Other", "type": kind}]
        if schema.get("default") is None:  # null comes last: a form preselects the first
            schema["anyOf"].append({"title": "Empty", "type": "null"})
            schema.pop("default", None)
        schema.pop("type", None)
        schema.pop("pattern", None)

    return change


def _select_model(schema: dict[str, Any]) -> None:
    _select(catalog.models(), "In the catalog", "string")(schema)


class VideoRequest(BaseModel):
    """One video as the API accepts it. Whatever the API would reject is rejected here, before anything is sent.

    What a model supports is in the catalog (`apixo.catalog`). A model that is not there is sent what was given.
    """

    # Messages never contain input: an invalid URL may contain a password, and messages end up in logs.
    model_config = ConfigDict(extra="forbid", frozen=True, title="Video request", hide_input_in_errors=True)

    prompt: Annotated[str, StringConstraints(min_length=1, max_length=MAX_PROMPT_CHARACTERS)] = Field(
        title="Prompt",
        description=(
            "What the video shows, in up to 10,000 characters. Clear, structured prompts succeed more often: "
            "camera, lighting, emotional tone, action, scene transitions."
        ),
    )
    model: ModelName = Field(
        default=DEFAULT_MODEL,
        title="Model",
        description="The provider's name for the model. `sora models` lists what each one supports.",
        json_schema_extra=_select_model,
    )
    duration: StrictInt | None = Field(
        default=None,
        title="Duration (seconds)",
        description=(
            "Length of the video in seconds; with sora-2 4, 8 or 12. Leave empty for the model's default, with sora-2 "
            "4. Start with a short one; longer ones cost more."
        ),
        json_schema_extra=_select((4, 8, 12), "Sora 2", "integer"),
    )
    aspect_ratio: Annotated[str, StringConstraints(max_length=40)] | None = Field(
        default=None,
        title="Aspect ratio",
        description=(
            "`landscape` for video platforms and desktop, `portrait` for short-video platforms and mobile, or another "
            "one that the model supports. Leave empty for the model's default, with sora-2 `landscape`."
        ),
        json_schema_extra=_select(("landscape", "portrait"), "Common", "string"),
    )
    image_urls: list[ImageUrl] = Field(
        default_factory=list,
        title="Image URLs",
        description=(
            "For image-to-video: public URLs of JPG, PNG or WebP images, at most 10 MB each, or "
            "`s3://bucket/object` for one in the archive's store. The image is the start or key frame."
        ),
    )
    mode: Annotated[str, StringConstraints(max_length=64)] | None = Field(
        default=None,
        title="Mode",
        description="Such as `text-to-video` or `image-to-video`. Leave empty to derive it from the image URLs.",
        json_schema_extra=_select(("text-to-video", "image-to-video"), "Common", "string"),
    )
    remove_watermark: bool = Field(
        default=True, title="Remove watermark", description="Off keeps the provider's watermark in the video."
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        title="Options",
        description=(
            'What the model supports beyond these fields, by its own names, such as `{"sound": true}`. '
            "`sora models MODEL` lists them."
        ),
    )
    tags: list[Tag] = Field(
        default_factory=list,
        max_length=20,
        title="Tags",
        description=(
            "Short labels to find the video by. They are not part of the request itself: changing them does not make a "
            "new video."
        ),
    )
    fallback_models: list[ModelName] = Field(
        default_factory=list,
        max_length=5,
        title="Fallback models",
        description=(
            "Tried in this order if the provider says that the previous model does not exist or is unavailable, and "
            "nothing was paid. Empty: none."
        ),
    )

    @model_validator(mode="after")
    def _supported_by_the_model(self, info: ValidationInfo) -> Self:
        if self.model == DEFAULT_MODEL:
            # These defaults are fixed here, not in the catalog: records, digests and keys of earlier versions contain
            # them. The fields of other models stay as given, so that they do not change when a catalog does.
            # The request is frozen, hence `object.__setattr__`; nothing else sets these.
            follows = "image-to-video" if self.image_urls else "text-to-video"
            object.__setattr__(self, "mode", self.mode or follows)
            object.__setattr__(self, "duration", 4 if self.duration is None else self.duration)
            object.__setattr__(self, "aspect_ratio", self.aspect_ratio or "landscape")
        if not (info.context and info.context.get("stored")):
            problems = self._problems()
            if problems:
                raise ValidationError.from_exception_data(
                    type(self).__name__,
                    [
                        InitErrorDetails(type=PydanticCustomError(UNSUPPORTED, text), loc=where, input="")
                        for where, text in problems
                    ],
                    hide_input=True,
                )
        return self

    def _problems(self) -> list[FieldProblem]:
        """What the model or a fallback model does not support: the field, and what is allowed."""
        unusable = catalog.problem()
        if unusable is not None:
            return [(("model",), f"cannot be checked: {unusable}")]
        if not catalog.can_be_sent(self.options):
            return [(("options",), f"must be plain JSON of at most {catalog.MAX_OPTIONS_CHARACTERS:,} characters")]
        common = self.options.keys() & catalog.COMMON
        if common:  # as options, they would bypass every check and the price
            fields = "is a separate field" if len(common) == 1 else "are separate fields"
            return [(("options",), f"contains {', '.join(sorted(common))}, which {fields} of the request")]
        if not self.prompt.strip():
            return [(("prompt",), "is blank; describe the video in a sentence"), *_unsupported(self)]
        found = _unsupported(self) or self._unknown_options()
        if found:
            return found
        return [
            (("fallback_models",), f"cannot be used for this request, with {name}: {'.'.join(where)} {text}")
            for name in self.fallback_models
            for where, text in _unsupported(self.on(name))
        ]

    def _unknown_options(self) -> list[FieldProblem]:
        """Options that neither the model nor a fallback model has: a typo would be paid for."""
        chain = [catalog.find(name) or catalog.UNKNOWN for name in self.models]
        if any(known.other_options for known in chain):
            return []
        taken = {name for known in chain for name in known.options}
        lists = f"it supports {', '.join(sorted(taken))}" if taken else "it supports none"
        unknown = [name if _OPTION_NAME.fullmatch(name) else "a name" for name in self.options if name not in taken]
        return [(("options",), f"contains {name}, which {self.model} does not support; {lists}") for name in unknown]

    @property
    def cataloged(self) -> VideoModel | None:
        """Its model's entry in the catalog; None: there is none."""
        return catalog.find(self.model)

    @property
    def _known(self) -> VideoModel:
        return self.cataloged or catalog.UNKNOWN

    @property
    def models(self) -> tuple[str, ...]:
        """Its model, then the fallback models."""
        return tuple(dict.fromkeys((self.model, *self.fallback_models)))

    @property
    def seconds(self) -> int | None:
        """The requested duration in seconds; None: the model has none, or is unknown and none was given."""
        return self._known.seconds(self.duration, self._mode)

    @property
    def shape(self) -> Shape | None:
        """The requested orientation; None: the model decides."""
        known = self._known
        if known.ratio_field in self.options:
            return catalog.shape_of(str(self.options[known.ratio_field]))
        return catalog.shape_of(known.ratio(self.aspect_ratio, self._mode))

    @property
    def image_limits(self) -> ImageLimits:
        """The limits of an image, for all models that may get it."""
        return functools.reduce(operator.and_, (catalog.find(name) or catalog.UNKNOWN for name in self.models))

    @property
    def _mode(self) -> str:
        return self._known.mode_for(self.mode, len(self.image_urls))

    def on(self, model: str) -> Self:
        """The same request for another model, such as a fallback, without fields that it does not have."""
        if model == self.model:
            return self
        known = catalog.find(model)
        changed: dict[str, Any] = {"model": model}
        if known is not None:
            if self.mode not in known.modes:
                changed["mode"] = None
            if not known.durations:
                changed["duration"] = None
            if not known.ratios and self.aspect_ratio == "landscape":  # the default
                changed["aspect_ratio"] = None
        return self.model_copy(update=changed)

    @property
    def summary(self) -> str:
        """The request without its prompt, in a few words."""
        length = f"{self.seconds} s" if self.seconds is not None else None
        parts = (length, self.aspect_ratio or self.shape, self._mode)
        other = f" with {self.model}" if self.model != DEFAULT_MODEL else ""
        return ", ".join(part for part in parts if part) + other

    def input(self) -> dict[str, Any]:
        """The body's `input`: the common fields with the model's own names, and the options that it has."""
        known = self._known
        fields = {"duration": self.seconds, known.ratio_field: known.ratio(self.aspect_ratio, self._mode)}
        options = {k: v for k, v in self.options.items() if known.other_options or k in known.options}
        if self.image_urls:
            options = known.options_with_images | options
        made: dict[str, Any] = {"mode": self._mode, "prompt": self.prompt}
        made |= {name: value for name, value in fields.items() if value is not None}
        if known.remove_watermark or (known is catalog.UNKNOWN and not self.remove_watermark):
            made["remove_watermark"] = self.remove_watermark
        if self.image_urls:
            made["image_urls"] = list(self.image_urls)
        return made | options

    def body(self, callback_url: str | None = None) -> dict[str, Any]:
        """The JSON body of the paid call. With a callback URL, the request type is `callback`, else `async`."""
        provider = self._known.provider
        body: dict[str, Any] = {"request_type": "callback" if callback_url else "async", "input": self.input()}
        if provider is not None:
            body["provider"] = provider
        if callback_url:
            body["callback_url"] = callback_url
        return body


def _unsupported(request: VideoRequest) -> list[FieldProblem]:
    """What the request's own model does not support, according to the catalog."""
    known = request.cataloged
    if known is None:
        wrong = request.duration is not None and not 1 <= request.duration <= MAX_SECONDS
        return [(("duration",), f"must be 1 to {MAX_SECONDS:,} with {request.model}")] if wrong else []
    found: list[FieldProblem] = []
    if not request.remove_watermark and not known.remove_watermark:
        found.append((("remove_watermark",), f"cannot be off with {request.model}, which has no such field"))
    # An option such as sora-2-pro's `size` may contradict a given aspect ratio.
    given, requested = request.options.get(known.ratio_field), catalog.shape_of(request.aspect_ratio)
    option_shape = catalog.shape_of(given) if isinstance(given, str) else None
    if requested and option_shape and option_shape != requested:
        text = f"is {option_shape}, but aspect_ratio is {requested} with {request.model}: leave one of them out"
        found.append((("options", known.ratio_field), text))
    for field, text in known.problems(request.input(), request.model):
        if field in ("mode", "prompt", "duration", "image_urls"):
            found.append(((field,), text))
        elif field == known.ratio_field == "aspect_ratio":
            found.append((("aspect_ratio",), text))
        elif field == known.ratio_field and field not in request.options:
            found.append((("aspect_ratio",), f"must be {catalog.one_of(known.ratios)} with {request.model}"))
        else:
            found.append((("options", field), text))
    return found
