"""What prefect.yaml deploys: that it fits the code, and that no event can vanish."""

import inspect
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.utilities.schema_tools.hydration import HydrationContext, hydrate

from deployments import deploy
from deployments.connection import SetupError

TEXT = (deploy.ROOT / "prefect.yaml").read_text()
DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load(TEXT)["deployments"]
TRIGGERS = [(item, trigger) for item in DEPLOYMENTS for trigger in item.get("triggers", ())]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda item: item["name"])
def test_every_deployment_names_a_flow_and_parameters_that_exist(
    deployment: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(deploy.ROOT)
    flow: Flow[..., Any] = load_flow_from_entrypoint(deployment["entrypoint"])
    parameters = set(inspect.signature(flow.fn).parameters)
    given = {*deployment.get("parameters", {})}
    for trigger in deployment.get("triggers", ()):
        given |= {*trigger["parameters"]}
    assert given <= parameters
    (wanted,) = [item for item in deploy.wanted_deployments(TEXT) if item.name == deployment["name"]]
    assert wanted.flow == flow.name
    assert deployment["description"]
    assert deployment["tags"]
    assert deployment["work_pool"]["name"] == deploy.POOL
    assert deployment["work_pool"]["work_queue_name"] in deploy.QUEUES


@pytest.mark.parametrize(("deployment", "trigger"), TRIGGERS, ids=lambda item: item["name"])
def test_no_expression_of_a_trigger_can_fail_without_a_run(deployment: dict[str, Any], trigger: dict[str, Any]) -> None:
    def expressions(value: object) -> list[str]:
        if isinstance(value, dict):
            return [found for part in value.values() for found in expressions(part)]
        return [part.partition("}}")[0] for part in value.split("{{")[1:]] if isinstance(value, str) else []

    for expression in expressions(trigger["parameters"]):
        assert "default(" in expression or expression.strip() == "flow_run.id | string", expression
    if "request" in trigger["parameters"]:
        assert deployment["enforce_parameter_schema"] is False


@pytest.mark.parametrize(
    "prompt",
    [
        "{{ 7 * 7 }} {% for a in ().__class__.__mro__ %}{{ a }}{% endfor %} {# gone #}",
        '", "duration": 12, "prompt": "another',
        "\\ \" ' </script> & \n\u2028\u202e\x1b[2J \U0001f3ac",
        '{"__prefect_kind": "workspace_variable", "variable_name": "x"}',
    ],
)
def test_a_prompt_in_an_event_is_no_template_and_stays_what_it_was(prompt: str) -> None:
    """Prefect fills in the parameters when the event comes, and looks for placeholders again when it makes the run."""
    parameters = {"scene": prompt}
    context = {
        "event": SimpleNamespace(id="an-id", payload={"request": {"prompt": prompt}}),
        "flow_run": SimpleNamespace(id="an-id", parameters=parameters),
    }
    for _, trigger in TRIGGERS:
        if "request" in trigger["parameters"]:
            filled = hydrate(
                {"request": trigger["parameters"]["request"]},
                HydrationContext(render_jinja=True, render_workspace_variables=True, jinja_context=context),
            )
            made = hydrate(filled, HydrationContext(render_workspace_variables=True))
            assert made["request"]["prompt"] == prompt
            assert "duration" not in made["request"]


def test_only_the_short_collector_has_a_concurrency_limit() -> None:
    assert [item["name"] for item in DEPLOYMENTS if "concurrency_limit" in item] == ["collect-videos"]


def test_what_costs_money_has_no_schedule_that_is_switched_on() -> None:
    active = [item["name"] for item in DEPLOYMENTS for plan in item.get("schedules", ()) if plan.get("active", True)]
    assert active == ["collect-videos"]


def test_the_example_calendar_is_where_the_deployment_looks_for_it() -> None:
    (batch,) = [item for item in DEPLOYMENTS if item["name"] == "generate-batch"]
    assert (deploy.ROOT / batch["parameters"]["calendar"]).is_file()


def test_the_version_follows_the_code_and_nothing_else(tmp_path: Path) -> None:
    for part in ("prefect.yaml", "flows", "apixo"):
        source = deploy.ROOT / part
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / part)
    before = deploy.code_version(tmp_path)
    (tmp_path / "notes.py").write_text("x = 1\n")
    (tmp_path / "flows/__pycache__").mkdir(exist_ok=True)
    assert deploy.code_version(tmp_path) == before
    (tmp_path / "flows/keys.py").write_text("# changed\n")
    assert deploy.code_version(tmp_path) != before


async def test_without_prefect_yaml_it_says_where_to_deploy_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "ROOT", tmp_path)
    with pytest.raises(SetupError, match=r"no prefect\.yaml"):
        await deploy.deploy()
