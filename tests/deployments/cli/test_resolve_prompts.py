"""The prompts of `sora resolve` in each state, without the rest of the command."""

import re

import pytest
import typer
from typer.testing import CliRunner

from apixo.errors import NO_RESULT
from deployments.cli.resolve import ask
from flows.record.generation import Generation
from tests.flows.record.changes import claimed, fail, lose, submit


def failed(code: str) -> Generation:
    return fail(submit(claimed()), code=code)


@pytest.mark.parametrize(
    ("found", "answers", "requested", "decided"),
    [
        (lose(claimed()), "y\n t1 \n", ["and prompt"], "decided: t1"),
        (lose(claimed()), "n\ny\n", ["and prompt", "for it"], "decided: None"),  # a second payment is allowed
        (lose(claimed()), "n\nn\n", ["and prompt", "for it"], "Aborted."),
        (failed(NO_RESULT), "y\n", ["in progress"], "decided: t1"),  # the generation's own task is resumed
        (failed(NO_RESULT), "n\ny\n", ["in progress", "another try"], "decided: None"),
        (failed("ODD"), "y\n", ["another try"], "decided: None"),
        (failed(NO_RESULT), "n\nn\n", ["in progress", "another try"], "Aborted."),
        (failed("CONTENT_VIOLATION"), "", [], "change it, and use a new key"),
        (submit(claimed()), "", [], "kite is submitted: there is nothing to resolve"),
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
