"""The flow `generate-video`: one video, from the request to the archive."""

from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from typing import Annotated, Any
from uuid import uuid4

from prefect import flow
from prefect.runtime import flow_run
from pydantic import BeforeValidator

from apixo import DeadlineError, SoraError, VideoRequest
from flows import steps
from flows.batch.cells import as_meant
from flows.explaining import explain_refused_parameters, explained
from flows.forms import OptionalKey
from flows.permission import PAYING_FLOW, rerun_by_person
from flows.record import moderation
from flows.record.advice import not_archived_sentence, unknown_model
from flows.record.generation import Generation
from flows.record.indexes import request_digest
from flows.record.keys import check_key
from flows.record.ledger import Entry, Ledger
from flows.record.pipeline_errors import SupersededError, VideoFailedError
from flows.record.run_keys import slug, typed_name
from flows.resources import PayingResources
from flows.signals.progress import run_logger
from flows.signals.run_artifacts import publish_on_its_way
from flows.signals.run_log import prepare_run_log
from flows.signals.runs import root_run_id, tag_run
from flows.steps.retrying import retried, whole
from flows.submission import Terms


def name_of_run(verb: str) -> str:
    """The name of a run that makes one video, from nothing but its parameters."""
    parameters = flow_run.parameters
    return f"{verb} {parameters.get('key') or run_title(prompt_of(parameters.get('request')), verb)}"


def prompt_of(request: Any) -> str:
    """The prompt in a run's `request` parameter, which may be of any type."""
    found = request.get("prompt") if isinstance(request, dict) else getattr(request, "prompt", None)
    return found if isinstance(found, str) else ""


def run_title(prompt: str, *verbs: str) -> str:
    """The name of a video without a key: from the run name that a user typed, or else from its prompt."""
    return slug(typed_name(flow_run.name, *verbs) or prompt)


@flow(
    name="generate-video",
    flow_run_name=lambda: name_of_run("generate"),
    on_failure=[explain_refused_parameters],
    **PAYING_FLOW,
)
async def generate_video(
    request: Annotated[VideoRequest, BeforeValidator(as_meant)],
    key: OptionalKey = "",
    wait: bool = True,
    refuse_duplicates: bool = False,
    api: str = "default",
    archive: str = "default",
) -> Generation:
    """Generates one video and archives it. Rerunning it, or running it again with the same key, never pays twice.

    Args:
        request: The video: prompt, model, duration, aspect ratio, start image.
        key: Names this video forever: the same key is the same video. If empty, it is the run's name if you typed
            one, or else the prompt's first words; a rerun of this run, or of the flow around it, keeps it.
        wait: If off, the run ends after the submission. The collector, or a run with the same key, archives the video.
        refuse_duplicates: If on, the run fails before paying if the same request was submitted under another key.
        api: Name of the `apixo-api` block.
        archive: Name of the `video-archive` block.
    """
    prepare_run_log()
    title = check_key(key) if key else run_title(request.prompt, "generate")
    async with explained(title), PayingResources.of_blocks(api, archive) as resources:
        key = key or await key_of_run(request, resources.ledger, title)
        await tag_run(request.tags, name=f"generate {key}")
        async with explained(key, resources):
            terms = Terms(may_submit_again=rerun_by_person, waits=wait, refuse_duplicates=refuse_duplicates)
            made = await generate(request, key, resources, terms)
    if not made.objects:
        await publish_on_its_way(made, resources.options)
    return made


async def key_of_run(request: VideoRequest, ledger: Ledger, title: str) -> str:
    """The key for a video that was given none: a rerun of its run is the same video, a new run is another one.

    A parent's retry starts its subflows as new runs with new ids. So in a subflow, the key belongs to the outermost
    run, whose id stays the same, and the request. It is recorded before anything is paid.
    """
    root = root_run_id()
    if root is None:  # outside a run, where nothing could be rerun
        return check_key(str(uuid4()))
    inner = root != flow_run.id
    key = await ledger.run_keys.key(f"{root}-{request_digest(request)[:12]}" if inner else root, title)
    run_logger().info(
        "No key was given, so this video is called %s; reruns keep that key.%s", key,
        " An equal request in the same outermost run is the same video; give a key to get another one." * inner,
    )  # fmt: skip
    return key


async def generate(
    request: VideoRequest,
    key: str,
    resources: PayingResources,
    terms: Terms,
    *,
    starting: AbstractAsyncContextManager[object] | None = None,
) -> Generation:
    """Runs the five steps of one generation. Each reads from the ledger's record what is already done.

    Args:
        terms: the terms of the submission; if they do not wait, this ends after the submission.
        starting: held until the request is submitted, so that only a few rows of a batch start at the same time.
    """
    if terms.waits and resources.api.callback_url:
        resources.subscriber.subscribe()
    unknown = unknown_model(request)
    if unknown is not None:
        run_logger().warning("%s: %s.", key, unknown)
    async with starting or nullcontext():
        await retried(steps.validate_image, resources.api.retry_delay_seconds)(key, whole(request), resources)
        submitted: Entry = await steps.submit(key, whole(request), resources, whole(terms))
    paid = submitted.generation.task
    if not terms.waits:
        run_logger().info("%s is submitted as task %s; this run does not wait for it.", key, paid.task_id)
        return submitted.generation
    try:
        ended, status = await steps.wait(whole(paid), submitted, resources)
        return await steps.retrieve(paid, ended, status, resources)
    except VideoFailedError:
        if not await _may_submit_again(key, resources):
            raise
        return await generate(request, key, resources, replace(terms, unclaimed=False), starting=starting)
    except SupersededError:
        raise  # there is nothing more to do for this task
    except Exception as error:
        sentence = not_archived_sentence(paid, resources.options, resources.api.result_valid_hours)
        run_logger().error("%s", sentence)  # the error itself is raised, and logged by Prefect
        if not isinstance(error, DeadlineError):  # its message already says so
            error.add_note(sentence)
        raise


async def _may_submit_again(key: str, resources: PayingResources) -> bool:
    """Whether the verdict may be mistaken, and the API block allows another submission. The record counts these."""
    try:
        entry = await resources.ledger.read(key)
    except SoraError:  # report the failure; a rerun checks again
        return False
    return entry is not None and moderation.may_submit_again(entry.generation, resources.api.moderation_retries)
