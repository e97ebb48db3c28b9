"""The flow `check-setup`: checks whether this worker has everything that a run needs. It pays nothing."""

from prefect import flow
from prefect.artifacts import acreate_table_artifact

from flows.checks import Finding
from flows.checks import check_setup as check
from flows.record.pipeline_errors import PipelineError
from flows.signals.artifacts import plain
from flows.signals.progress import run_logger
from flows.signals.run_log import prepare_run_log

ARTIFACT_KEY = "sora-check-setup"


class SetupCheckError(PipelineError):
    """Something is missing or wrong; the message says what."""


@flow(name="check-setup", flow_run_name="check setup")
async def check_setup(api: str = "default", archive: str = "default") -> list[Finding]:
    """Checks all that a run on this worker needs: blocks, archive, clock, API, routes to results and images, disk.

    It runs where videos would be generated, and pays nothing. It writes to the archive under `probe/` and `incoming/`.

    Args:
        api: Name of the apixo-api block.
        archive: Name of the video-archive block.
    """
    prepare_run_log()
    logger = run_logger()
    findings = await check(api, archive)
    for finding in findings:
        log = {"ok": logger.info, "warning": logger.warning, "error": logger.error}[finding.outcome]
        log("%s: %s", finding.name, finding.detail)
    await acreate_table_artifact(
        table=[{field: plain(value) for field, value in finding.model_dump().items()} for finding in findings],
        key=ARTIFACT_KEY,
        description="What a run on this worker needs, and whether it is available.",
    )
    wrong = [finding for finding in findings if finding.outcome == "error"]
    if wrong:
        raise SetupCheckError("; ".join(f"{finding.name}: {finding.detail}" for finding in wrong))
    return findings
