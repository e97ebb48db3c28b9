"""Gives a run that fails an artifact of its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from prefect import Flow, get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.objects import FlowRun, State

from apixo import SoraError
from flows.record.advice import NOTHING_SENT, UNREADABLE, Advice, advice
from flows.record.generation import Generation
from flows.record.pipeline_errors import DuplicateRequestError, KeyConflictError
from flows.resources import Resources
from flows.signals.artifacts import shown
from flows.signals.run_artifacts import failure_markdown, publish_failure

EXPLAINED: Final = "_has_artifact"
"""Set on an error that has its artifact."""
REFUSED_PARAMETERS: Final = "Validation of flow parameters failed"
"""How Prefect's message begins when it did not even call the flow."""


@asynccontextmanager
async def explained(key: str, resources: Resources | None = None) -> AsyncIterator[None]:
    """Publishes what happened, whether it was paid, and what to do, and raises the error again.

    Args:
        resources: the ledger. None: before it is opened; then nothing was sent.
    """
    try:
        yield
    except Exception as error:
        if not getattr(error, EXPLAINED, False):
            guidance, found = await _advice(key, error, resources)
            await publish_failure(key, str(error) or type(error).__name__, guidance, found)
            setattr(error, EXPLAINED, True)
        raise


async def _advice(key: str, error: Exception, resources: Resources | None) -> tuple[Advice, Generation | None]:
    if resources is None or isinstance(error, KeyConflictError | DuplicateRequestError):
        return NOTHING_SENT, None
    try:
        entry = await resources.ledger.read(key)
    except SoraError:
        return UNREADABLE, None
    return (advice(entry.generation, resources.options), entry.generation) if entry else (NOTHING_SENT, None)


async def explain_refused_parameters(flow: Flow[..., Any], flow_run: FlowRun, state: State) -> None:
    """Publishes why parameters were rejected, such as a malformed event's: Prefect then never calls the flow.

    A hook for `on_failure`. It has no run context, so the artifact names its run.
    """
    del flow
    message = state.message or ""
    if not message.startswith(REFUSED_PARAMETERS):
        return
    name = str((flow_run.parameters or {}).get("key") or flow_run.id)
    artifact = ArtifactCreate(
        key=f"refused-{flow_run.id}",
        type="markdown",
        description=f"{NOTHING_SENT.title}: its parameters are invalid",
        data=failure_markdown(name, message, NOTHING_SENT, None),
        flow_run_id=flow_run.id,
    )
    async with get_client() as client:
        await shown(client.create_artifact(artifact), what=f"the artifact of {flow_run.id}")
