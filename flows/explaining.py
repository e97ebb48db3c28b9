"""Publishes an artifact that explains why a run failed."""

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
"""The attribute that marks an error whose artifact is published."""
REFUSED_PARAMETERS: Final = "Validation of flow parameters failed"
"""The beginning of Prefect's message if it rejected the parameters and did not call the flow."""


@asynccontextmanager
async def explained(key: str, resources: Resources | None = None) -> AsyncIterator[None]:
    """If the block raises, publishes what happened, whether it was paid, and what to do. The error is raised again.

    Args:
        resources: with the ledger; None: it is not open yet, so nothing was sent.
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
    """Publishes why Prefect rejected a run's parameters, such as those of a malformed event, without calling the flow.

    A hook for `on_failure`. It has no run context, so the artifact is created with the run's id.
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
