"""The prompts of `sora resolve` in each state, without the rest of the command."""

import re
from datetime import UTC, datetime

import pytest
import typer
from typer.testing import CliRunner

from apixo import Failed
from apixo.errors import NO_RESULT
from deployments.cli.resolve import ask
from flows.record import transitions
from flows.record.generation import Generation
from tests.flows.record.ledgers import claim_of, submitted

NOW = datetime(2026, 3, 1, 9, tzinfo=UTC)


def failed(code: str) -> Generation:
    status = Failed(task_id="t1", state="failed", fail_code=code, fail_message="no")
    return transitions.failed(submitted(claim_of("kite")), status, now=NOW)


@pytest.mark.parametrize(
    ("found", "answers", "requested", "decided"),
    [
        (failed(NO_RESULT), "y\n", ["in progress"], "t1"),  # the generation's own task is resumed
        (failed(NO_RESULT), "n\ny\n", ["in progress", "another try"], "None"),  # a second payment is allowed
        (failed("ODD"), "y\n", ["another try"], "None"),
        (failed(NO_RESULT), "n\nn\n", ["in progress", "another try"], "Aborted."),
        (failed("CONTENT_VIOLATION"), "", [], "change it, and use a new key"),
        (submitted(claim_of("kite")), "", [], "kite is submitted: there is nothing to resolve"),
    ],
)
def test_resolve_prompts_before_anything_is_paid(
    found: Generation, answers: str, requested: list[str], decided: str
) -> None:
    app = typer.Typer()

    @app.command()
    def command() -> None:
        typer.echo(f"decided: {ask(found)}")

    result = CliRunner().invoke(app, input=answers)
    assert decided in (result.output + str(result.exception))
    assert re.findall(r"(\w+ \w+)\? \[y/N\]", result.output) == requested
