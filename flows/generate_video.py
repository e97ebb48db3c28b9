"""The flow `generate-video`: one video, from the request to the archive."""

from prefect import flow
from prefect.runtime import flow_run

from apixo import VideoRequest
from apixo.constants import RESULT_DAYS
from blocks import ApixoApi, VideoArchive
from flows import steps
from flows.errors import VideoFailedError
from flows.generation import Generation
from flows.keys import Key, check_key
from flows.permission import rerun_by_person
from flows.progress import run_logger
from flows.resources import Resources, command_options, load_block, open_resources
from flows.retrieval import retrieve
from flows.steps.retrying import delays_seconds
from flows.steps.submit import BeforePaying, at_once


def _run_name() -> str:
    return f"generate {flow_run.parameters.get('key') or flow_run.id}"


# retries=0: not even a profile's default retries may run a flow that pays again by themselves.
@flow(name="generate-video", flow_run_name=_run_name, persist_result=False, log_prints=False, retries=0)
async def generate_video(
    request: VideoRequest,
    key: Key | None = None,
    wait: bool = True,
    api: str = "default",
    archive: str = "default",
) -> Generation:
    """Generates one video and archives it. Rerunning it, or running it again with the same key, never pays twice.

    Args:
        request: The video: prompt, duration, aspect ratio, start image.
        key: Names this video for ever: the same key is the same video. Without one, this run's id is the key.
        wait: Off ends the run after the submission. The collector, or a run with the same key, brings the video home.
        api: Name of the `apixo-api` block.
        archive: Name of the `video-archive` block.
    """
    key = check_key(str(flow_run.id) if key is None else key)
    blocks = await load_block(ApixoApi, api), await load_block(VideoArchive, archive)
    async with open_resources(*blocks, options=command_options(api, archive)) as resources:
        return await generate(request, key, resources, wait=wait)


async def generate(
    request: VideoRequest, key: str, resources: Resources, *, wait: bool = True, before_paying: BeforePaying = at_once
) -> Generation:
    """The five steps of one generation. Each reads in the ledger what is done already.

    Args:
        request, key: the video.
        resources: what the steps work with.
        wait: off ends after the submission.
        before_paying: called before each claim; what it raises keeps the request from being claimed and sent.
    """
    if wait and resources.api.callback_url:
        resources.doorbell.listen()
    delays = delays_seconds(resources.api.retry_delay_seconds)
    await steps.validate_image.with_options(retry_delay_seconds=delays)(key, request, resources)
    generation = await steps.submit(key, request, resources, rerun_by_person, before_paying, wait)
    if not wait:
        run_logger().info("%s is submitted as task %s; this run does not wait for it.", key, generation.task_id)
        return generation
    try:
        status = await steps.wait(key, resources)
        return await retrieve(generation, status, resources)
    except VideoFailedError:
        raise  # there is nothing to bring home
    except Exception:
        run_logger().error(  # the error itself is raised, and logged by Prefect
            "%s is paid, as task %s, and not archived yet. Nothing is lost: rerun this run, or run "
            "`sora resolve %s --task-id %s%s`. APIXO keeps its result for %d days.",
            key, generation.task_id, key, generation.task_id, resources.options, RESULT_DAYS,
        )  # fmt: skip
        raise
