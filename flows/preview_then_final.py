"""The flow `preview-then-final`: a cheap preview, a manual decision, then the final video."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from decimal import Decimal
from functools import partial
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar, get_args

from prefect import flow
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import apause_flow_run, asuspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment
from prefect.states import Completed
from pydantic import BeforeValidator, Field, ValidationError

from apixo import VideoRequest
from apixo.catalog import find
from apixo.errors import describe_problem
from blocks import ApixoApi
from flows.batch.cells import as_meant
from flows.explaining import explain_refused_parameters, explained
from flows.forms import PLAIN
from flows.generate_video import generate, key_of_run, name_of_run, run_title
from flows.permission import PAYING_FLOW, rerun_by_person
from flows.record.generation import Generation
from flows.record.keys import Key, check_key
from flows.record.ledger import Ledger
from flows.record.pipeline_errors import PipelineError
from flows.resources import PayingResources
from flows.signals.progress import run_logger
from flows.signals.run_artifacts import publish_question
from flows.signals.run_log import prepare_run_log
from flows.signals.runs import tag_run
from flows.submission import Terms

VERB: Final = "preview"
SECONDS: Final = 4
LONGEST_KEY: Final = 128 - len("-preview-999")

AS_LONG: Final = "as long as requested"
Decision = Literal[
    "Make the final video of 8 s. PAYS.",
    "Make the final video of 12 s. PAYS.",
    "Make the final video as long as requested. PAYS.",
    "Make another preview, with what is changed below. PAYS.",
    "Stop: no final video. Pays nothing.",
]
"""The choices as the form shows them. None is the default."""
FINAL_8, FINAL_12, AS_REQUESTED, ANOTHER, STOP = get_args(Decision)


class Answer(RunInput):
    """What a person decides about a preview. The form of a paused run."""

    decision: Decision = Field(title="Decision")
    prompt: str = Field(
        default="", title="New prompt", description="For the next video. Leave empty to keep the prompt."
    )
    model: str = Field(default="", title="New model", description="Such as `sora-2`. Leave empty to keep the model.")


class AnswerError(PipelineError):
    """There was no answer in time, or the model does not support the video."""


Form = TypeVar("Form", bound=RunInput)
Asked = TypeVar("Asked", bound=VideoRequest)
Meant = TypeVar("Meant")


class _Next(NamedTuple):
    """The meaning of an answer: the request for the next video (None: stop), and whether it is the final one."""

    request: VideoRequest | None
    is_final: bool = False


@flow(
    name="preview-then-final",
    flow_run_name=lambda: name_of_run(VERB),
    on_failure=[explain_refused_parameters],
    **PAYING_FLOW,
)
async def preview_then_final(
    request: Annotated[VideoRequest, BeforeValidator(as_meant)],
    key: Annotated[Annotated[Key, Field(max_length=LONGEST_KEY)] | None, *PLAIN] = "",
    answer_within_hours: Annotated[float, Field(gt=0, le=24 * 14)] = 24.0,
    api: str = "default",
    archive: str = "default",
) -> Any:
    """Makes a short preview, waits for a manual decision about it, then makes the final video.

    The run pauses with the preview in its artifact and a form behind *Resume*: make it 8 or 12 s or as long as
    requested, change the prompt or the model, make another preview, or stop. A rerun pays neither for the preview nor
    for the final video again.

    Args:
        request: The video. The preview has the model's shortest duration, and the form asks for the final one.
        key: Names these videos forever: `<key>-preview`, `<key>-preview-2`, and `<key>-final`. If empty, it is the
            run's name if you typed one, or else the prompt's first words.
        answer_within_hours: How long the run waits for an answer. After that it fails; a rerun asks again.
        api: Name of the `apixo-api` block.
        archive: Name of the `video-archive` block.
    """
    prepare_run_log()
    title = check_key(key) if key else run_title(request.prompt, VERB)
    async with explained(title), PayingResources.of_blocks(api, archive) as resources:
        key = key or await key_of_run(request, resources.ledger, title)
        await tag_run(request.tags, name=f"{VERB} {key}")
        decided = await resources.ledger.read(final_key(key))
        if decided is not None:  # an earlier start of this run, or another run with this key, was answered
            return await _made(decided.generation.request, final_key(key), resources)
        number, requested = await _latest_preview(key, request, resources.ledger)
    while True:
        async with PayingResources.of_blocks(api, archive) as resources:
            decided = await resources.ledger.read(final_key(key))
            if decided is not None:  # meanwhile, in another run: another preview would be useless
                return await _made(decided.generation.request, final_key(key), resources)
            preview = await _made(requested, preview_key(key, number), resources)
            poster = await resources.store.get(preview.poster_name) if preview.poster_name else None
            show = partial(
                publish_question,
                preview,
                resources.archive,
                poster=poster.data if poster else None,
                hours=answer_within_hours,
                prices=final_prices(
                    requested.model_copy(update={"duration": request.duration}), AS_LONG, resources.api
                ),
                currency=resources.api.currency,
                options=resources.options,
            )
        means = partial(meaning, requested=requested, duration=request.duration)
        answer = await answered(Answer, f"preview-{number}", answer_within_hours, show, means)
        if answer.request is None:
            return Completed(message=f"Stopped, as decided: no final video. The preview is archived as {preview.key}.")
        if answer.is_final:
            async with PayingResources.of_blocks(api, archive) as resources:
                return await _made(answer.request, final_key(key), resources)
        number, requested = number + 1, answer.request


def preview_key(key: str, number: int) -> str:
    """The key of a preview. Pure."""
    return f"{key}-preview" if number == 1 else f"{key}-preview-{number}"


def final_key(key: str) -> str:
    """The key of the final video. Pure."""
    return f"{key}-final"


def preview_of(request: VideoRequest) -> VideoRequest:
    """The same video with the shortest duration. Pure.

    Raises:
        AnswerError: the model does not support it, or supports no longer final video.
    """
    preview = lasting(request, shortest_seconds(request))
    if not final_seconds(request, AS_LONG):
        raise AnswerError(
            f"A preview is useless here: {request.model} makes neither 8 nor 12 s in this mode, and the request names "
            "no longer duration. Name one if the model has it, or use generate-video."
        )
    return preview


def shortest_seconds(request: VideoRequest) -> int | None:
    """The duration of a preview: the model's shortest in this mode, if possible one that its fallback models have too.

    None: the model has no durations. Pure.
    """
    if find(request.model) is None:
        return SECONDS
    first, *others = [
        set(known.durations_in(known.mode_for(on.mode, len(on.image_urls))))
        for on in map(request.on, request.models)
        if (known := on.cataloged) is not None
    ]
    return min(first.intersection(*filter(None, others)) or first, default=None)


def final_seconds(request: VideoRequest, as_long: str) -> dict[str, int | None]:
    """The possible durations of a final video by their labels, without that of the preview. Pure.

    Args:
        as_long: the label of the request's own duration.
    """
    found, shortest = {}, shortest_seconds(request)
    for length, seconds in (("for 8 s", 8), ("for 12 s", 12), (as_long, request.duration)):
        with suppress(AnswerError):
            found[length] = lasting(request, seconds).seconds
    return {length: seconds for length, seconds in found.items() if seconds != shortest}


def final_prices(request: VideoRequest, as_long: str, api: ApixoApi) -> dict[str, Decimal | None]:
    """The price of each possible final video, with each duration once; None: no price is known. Pure."""
    lengths = final_seconds(request, as_long)
    if lengths.get(as_long) in (8, 12):
        del lengths[as_long]
    return {length: api.price(request.model, seconds) for length, seconds in lengths.items()}


def meaning(answer: Answer, requested: VideoRequest, duration: int | None) -> _Next:
    """What to make next. Pure.

    Args:
        requested: the request of the preview that the user saw.
        duration: the duration as originally requested.

    Raises:
        AnswerError: the model does not support such a video, or it would be the same as, or as short as, the preview.
    """
    if answer.decision == STOP:
        return _Next(None)
    changes = {"prompt": answer.prompt.strip() or requested.prompt, "duration": duration}
    changed = requested.model_copy(update=changes).on(answer.model.strip() or requested.model)
    if answer.decision == ANOTHER:
        another = preview_of(changed)
        if another == requested:
            raise AnswerError("Another preview would be the same: change the prompt or the model.")
        return _Next(another)
    final = lasting(changed, {FINAL_8: 8, FINAL_12: 12}.get(answer.decision, duration))
    if final.seconds == shortest_seconds(final):
        raise AnswerError("The final video would be as short as its preview: choose another length.")
    return _Next(final, is_final=True)


def lasting(request: Asked, seconds: int | None) -> Asked:
    """The same video with another duration. Pure.

    Raises:
        AnswerError: the model does not support such a video.
    """
    try:
        return type(request).model_validate(request.model_dump() | {"duration": seconds})
    except ValidationError as error:
        raise AnswerError("; ".join(describe_problem(item) for item in error.errors()) + ".") from error


async def _latest_preview(key: str, request: VideoRequest, ledger: Ledger) -> tuple[int, VideoRequest]:
    """The number of the preview that a rerun continues with, and its request."""
    number, requested = 1, preview_of(request)
    while (entry := await ledger.read(preview_key(key, number + 1))) is not None:
        number, requested = number + 1, entry.generation.request
    return number, requested


async def _made(request: VideoRequest, key: str, resources: PayingResources) -> Generation:
    async with explained(key, resources):
        return await generate(request, key, resources, Terms(may_submit_again=rerun_by_person, waits=True))


async def answered(
    form: type[Form],
    question: str,
    hours: float,
    show: Callable[[str], Awaitable[None]],
    means: Callable[[Form], Meant],
) -> Meant:
    """Asks until there is a usable answer. Returns its meaning.

    Args:
        question: the prefix of the questions' names.
        show: shows the question; called with the reason why the last answer could not be used, or an empty text.
        means: returns an answer's meaning. If it raises an `AnswerError`, the question is asked again.

    Raises:
        AnswerError: there was no answer in time.
    """
    problem, number = "", 0
    while True:
        await show(problem)
        answer = await ask(form, f"{question}-{number}", hours)
        try:
            return means(answer)
        except AnswerError as error:
            problem, number = str(error), number + 1
            run_logger().warning("The answer cannot be used: %s Asking again.", problem)


async def ask(form: type[Form], question: str, hours: float) -> Form:
    """Waits for an answer. The run of a deployment is suspended meanwhile; any other run waits in this process.

    When the flow continues, an earlier answer is available at once under the question's name, so the name must be the
    same then. Prefect asks under each name only once. If it has no answer there that fits the form, as after a time-out
    or an upgrade, the question is asked under the next name.

    Args:
        question: the question's name. Another question needs another name.

    Raises:
        AnswerError: there was no answer in time. For a deployment, Prefect itself ends the run.
    """
    name, number = question, 1
    while True:
        with suppress(ValidationError):
            return await _ask_once(form, name, hours)
        number += 1
        name = f"{question}-{number}"


async def _ask_once(form: type[Form], name: str, hours: float) -> Form:
    seconds = round(hours * 3600)
    if deployment.id is not None:
        return await asuspend_flow_run(wait_for_input=form, timeout=seconds, key=name)
    try:
        return await apause_flow_run(wait_for_input=form, timeout=seconds, key=name, poll_interval=1)
    except FlowPauseTimeout as error:
        raise AnswerError(
            f"Nobody answered within {hours:g} hours. Nothing more was paid, and what was made is archived. Retry this "
            "run, or start it again with the same key, to be asked again."
        ) from error
