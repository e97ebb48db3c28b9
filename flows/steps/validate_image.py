"""Checks every image before anything is paid: the provider would charge and then report INVALID_IMAGE_URL."""

from prefect import task

from apixo import VideoRequest
from flows.media.own_images import check_as_provider
from flows.record.generation import State
from flows.resources import Resources
from flows.signals.progress import report_progress, run_logger
from flows.steps.retrying import FREE_STEP
from flows.wording import counted


@task(name="validate_image", task_run_name="validate_image {key}", **FREE_STEP)
async def validate_image(key: str, request: VideoRequest, resources: Resources) -> None:
    """Fetches and decodes every image of the request. Retried when the network failed.

    It returns nothing: Prefect 3.8 tracks results by memory address. After a discarded list, it would mistake a later
    object at the same address for this step's result.

    Raises:
        MediaError: an image is rejected, with the reason, or cannot be fetched.
    """
    logger = run_logger()
    if not request.image_urls:
        logger.debug("%s is text-to-video: there is no image to validate.", key)  # a line for each row of a batch
        report_progress(key, "validate_image", "no image", done=True)
        return
    entry = await resources.ledger.read(key)
    if entry is not None and entry.generation.state not in (State.REJECTED, State.FAILED):
        # The image may have been removed since. That must not stop a video that may already be paid.
        logger.info("%s was validated before: the ledger says %s.", key, entry.generation.state)
        report_progress(key, "validate_image", "done before", done=True)
        return
    for number, url in enumerate(request.image_urls, start=1):
        report_progress(key, "validate_image", f"image {number} of {len(request.image_urls)}")
        found = await check_as_provider(resources.web, url, resources.image_url_for, limits=request.image_limits)
        logger.info(
            "Image %d of %s is valid: %s, %d x %d, %d bytes.",
            number, key, found.format, found.width, found.height, found.size_bytes,
        )  # fmt: skip
    report_progress(key, "validate_image", f"{counted(len(request.image_urls), 'image')} checked", done=True)
