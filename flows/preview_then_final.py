"""The flow `preview-then-final`: a cheap preview, a manual decision, then the final video."""

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
from blocks import ApixoApi, VideoArchive
from flows.batch.cells import as_meant
from flows.explaining import explain_refused_parameters, explained
from flows.forms import PLAIN
from flows.generate_video import generate, key_of_run, name_of_run, run_title
from flows.permission import PAYING_FLOW, rerun_by_person
from flows.record.errors import PipelineError
from flows.record.generation import Generation
from flows.record.keys import Key, check_key
from flows.record.ledger import Ledger
from flows.resources import PayingResources, command_options, load_block
from flows.signals.progress import run_logger
from flows.signals.run_artifacts import publish_question
from flows.signals.run_log import prepare_run_log
from flows.signals.runs import tag_run
from flows.submission import Terms

VERB: Final = "preview"
SECONDS: Final = 4
LONGEST_KEY: Final = 128 - len("-preview-999")

Decision = Literal[
    "Make the final video of 8 s. PAYS.",
    "Make the final video of 12 s. PAYS.",
    "Make another preview, with what is changed below. PAYS.",
    "Stop: no final video. Pays nothing.",
]
"""The form shows these texts. None is a default."""
FINAL_8, FINAL_12, ANOTHER, STOP = get_args(Decision)


class Answer(RunInput):
    """What a person decides about a preview. The form of a paused run."""

    decision: Decision = Field(title="Decision")
    prompt: str = Field(
        default="", title="New prompt", description="For the next video. Leave empty to keep the prompt."
    )
    model: str = Field(default="", title="New model", description="Such as `sora-2`. Leave empty to keep the model.")


class PreviewStateError(PipelineError):
    """Nobody answered in time, or the answer cannot be used."""


Form = TypeVar("Form", bound=RunInput)


class _Next(NamedTuple):
    """What an answer means: a request for the next video, or None to stop, and whether it is the final one."""

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
    """Makes a 4 s preview, waits for a manual decision about it, then makes the final video.

    The run pauses with the preview in its artifact and a form behind *Resume*: make it 8 or 12 s, change the prompt
    or the model, make another preview, or stop. A rerun pays neither for the preview nor for the final video again.

    Args:
        request: The video. Its duration does not matter: the preview has the model's shortest, and the form asks for
            the final one.
        key: Names these videos forever: `<key>-preview`, `<key>-preview-2`, and `<key>-final`. If empty, it is the
            run's name if you typed one, or else the prompt's first words.
        answer_within_hours: How long the run waits for an answer. After that it fails; a rerun asks again.
        api: Name of the `apixo-api` block.
        archive: Name of the `video-archive` block.
    """
    prepare_run_log()
    options = command_options(api, archive)
    title = check_key(key) if key else run_title(request.prompt, VERB)
    async with explained(title):
        blocks = await load_block(ApixoApi, api), await load_block(VideoArchive, archive)
    async with PayingResources(*blocks, options=options) as resources:
        key = key or await key_of_run(request, resources.ledger, title)
        await tag_run(request.tags, name=f"{VERB} {key}")
        number, asked = await _latest_preview(key, request, resources.ledger)
    problem = ""
    asked_times = 0
    while True:
        async with PayingResources(*blocks, options=options) as resources:
            decided = await resources.ledger.read(final_key(key))
            if decided is not None:  # an earlier start of this run, or another one with this key, was answered
                return await _made(decided.generation.request, final_key(key), resources)
            preview = await _made(asked, preview_key(key, number), resources)
            poster = await resources.store.get(preview.poster) if preview.poster else None
            prices = {seconds: resources.api.price(asked.model, seconds) for seconds in (8, 12)}
        await publish_question(
            preview,
            blocks[1],
            poster=poster.data if poster else None,
            hours=answer_within_hours,
            problem=problem,
            prices=prices,
            currency=blocks[0].currency,
            options=options,
        )
        answer = await ask(Answer, f"preview-{number}-{asked_times}", answer_within_hours)
        try:
            decided_next = meaning(answer, asked)
        except PreviewStateError as error:
            problem = str(error)
            asked_times += 1
            run_logger().warning("The answer cannot be used: %s Asking again.", problem)
            continue
        problem, asked_times = "", 0
        if decided_next.request is None:
            return Completed(message=f"Stopped, as decided: no final video. The preview is archived as {preview.key}.")
        if decided_next.is_final:
            async with PayingResources(*blocks, options=options) as resources:
                return await _made(decided_next.request, final_key(key), resources)
        number, asked = number + 1, decided_next.request


def preview_key(key: str, number: int) -> str:
    """The key of a preview. Pure."""
    return f"{key}-preview" if number == 1 else f"{key}-preview-{number}"


def final_key(key: str) -> str:
    """The key of the final video. Pure."""
    return f"{key}-final"


def preview_of(request: VideoRequest) -> VideoRequest:
    """The same video in the shortest length that its model has. Pure.

    Raises:
        ValidationError: the model does not support the rest.
    """
    return _changed(request, duration=shortest_seconds(request.model))


def shortest_seconds(model: str) -> int | None:
    """The length of a preview by this model; None: it has only one length. Pure."""
    known = find(model)
    return min(known.durations, default=None) if known is not None else SECONDS


def meaning(answer: Answer, asked: VideoRequest) -> _Next:
    """What to make next. Pure.

    Args:
        asked: the request of the preview that they saw.

    Raises:
        PreviewStateError: the model does not support such a video, or another preview would be the same.
    """
    if answer.decision == STOP:
        return _Next(None)
    changes = {"prompt": answer.prompt.strip(), "model": answer.model.strip()}
    changes = {field: value for field, value in changes.items() if value}
    if "model" in changes and changes["model"] != asked.model:  # each model has its own modes
        changes["mode"] = None  # type: ignore[assignment]
    try:
        if answer.decision == ANOTHER:
            another = preview_of(_changed(asked, **changes))
            if another == asked:
                raise PreviewStateError("Another preview would be the same: change the prompt or the model.")
            return _Next(another)
        return _Next(_changed(asked, **changes, duration=8 if answer.decision == FINAL_8 else 12), is_final=True)
    except ValidationError as error:
        raise PreviewStateError("; ".join(describe_problem(item) for item in error.errors()) + ".") from error


def _changed(request: VideoRequest, **changes: Any) -> VideoRequest:
    return VideoRequest.model_validate(request.model_dump() | changes)


async def _latest_preview(key: str, request: VideoRequest, ledger: Ledger) -> tuple[int, VideoRequest]:
    """Which preview a rerun continues with, and its request."""
    number, asked = 1, preview_of(request)
    while (entry := await ledger.read(preview_key(key, number + 1))) is not None:
        number, asked = number + 1, entry.generation.request
    return number, asked


async def _made(request: VideoRequest, key: str, resources: PayingResources) -> Generation:
    async with explained(key, resources):
        return await generate(request, key, resources, Terms(may_submit_again=rerun_by_person, waits=True))


async def ask(form: type[Form], question: str, hours: float) -> Form:
    """Waits for an answer: as a deployment without a process, otherwise in this one.

    An earlier answer is available at once when the flow continues, so the name of the question has to be the
    same then.

    Args:
        question: its name. A second question needs another one.

    Raises:
        PreviewStateError: nobody answered in time. As a deployment, Prefect ends the run itself.
    """
    seconds = round(hours * 3600)
    if deployment.id is not None:
        return await asuspend_flow_run(wait_for_input=form, timeout=seconds, key=question)
    try:
        return await apause_flow_run(wait_for_input=form, timeout=seconds, key=question, poll_interval=1)
    except FlowPauseTimeout as error:
        raise PreviewStateError(
            f"Nobody answered within {hours:g} hours. Nothing more was paid, and what was made is archived. Retry this "
            "run, or start it again with the same key, to be asked again."
        ) from error
