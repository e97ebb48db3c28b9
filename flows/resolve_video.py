"""The flow `resolve-video`: a form for a manual decision about an unconfirmed or failed generation."""

from typing import Annotated, Literal, get_args

from prefect import flow
from prefect.runtime import flow_run
from pydantic import Field

from flows.explaining import explained
from flows.forms import Empty, OptionalText
from flows.generate_video import generate
from flows.permission import PAYING_FLOW
from flows.record.generation import Generation
from flows.record.keys import Key, check_key
from flows.resolution import ResolutionError, allow_resubmission, load_generation, resolve_as_task
from flows.resources import PayingResources
from flows.signals.run_artifacts import publish_on_its_way
from flows.signals.run_log import prepare_run_log
from flows.submission import Terms

Decision = Literal[
    "APIXO took it: go on with the task below. Pays nothing.",
    "APIXO did not take it, or it failed: submit once more. PAYS.",
]
"""The choices as the form shows them. Neither is the default."""
GO_ON, PAY_AGAIN = get_args(Decision)


def _run_name() -> str:
    return f"resolve {flow_run.parameters.get('key') or flow_run.id}"


@flow(name="resolve-video", flow_run_name=_run_name, **PAYING_FLOW)
async def resolve_video(
    key: Key,
    decision: Decision,
    task_id: OptionalText = "",
    attempt: Annotated[int, Field(ge=1, title="Number")] | Empty = None,
    wait: bool = True,
    api: str = "default",
    archive: str = "default",
) -> Generation:
    """Resolves a generation whose payment is unclear, or that failed, and finishes it, as `sora resolve` does.

    First look in your APIXO account for a task at the time given in the run's artifact.

    Args:
        key: The generation's key, as in the failed run's artifact.
        decision: What you found. Submitting once more may pay a second time.
        task_id: To continue: the task's id in your APIXO account. It is checked with APIXO first.
        attempt: To submit once more: the number of the attempt that you looked at, as in the artifact. This way the
            run pays once, however often it is rerun, and two people who decide about one attempt pay only once.
        wait: If off, the run ends after the decision, and the collector archives the video.
        api: Name of the `apixo-api` block.
        archive: Name of the `video-archive` block.
    """
    prepare_run_log()
    key = check_key(key)
    task_id = (task_id or "").strip() or None
    check_decision(key, decision, task_id, attempt)
    async with explained(key), PayingResources.of_blocks(api, archive) as resources, explained(key, resources):
        seen = await load_generation(key, resources.ledger)
        if task_id is not None:
            decided = await resolve_as_task(seen, task_id, resources)
        elif seen.attempt.number != attempt:
            raise ResolutionError(
                f"The last attempt of {key} is {seen.attempt.number}, and it is {seen.state}; you decided about "
                f"attempt {attempt}. Nothing was changed or paid. Check it again, then decide.",
                key=key,
            )
        else:
            decided = await allow_resubmission(seen, resources)
        made = await generate(decided.request, key, resources, Terms(waits=wait))
    if not made.objects:
        await publish_on_its_way(made, resources.options)
    return made


def check_decision(key: str, decision: Decision, task_id: str | None, attempt: int | None) -> None:
    """Checks that the form contains exactly one decision. Pure.

    Raises:
        ResolutionError: a field that the decision needs is missing, or both fields are set.
    """
    if decision == GO_ON and (task_id is None or attempt is not None):
        problem = "To continue with a task, give its task_id, and leave attempt empty."
    elif decision == PAY_AGAIN and (attempt is None or task_id is not None):
        problem = "To submit once more, give the number of the attempt that you looked at, and leave task_id empty."
    else:
        return
    raise ResolutionError(f"Nothing was decided about {key}: {problem} Nothing was changed.", key=key)
