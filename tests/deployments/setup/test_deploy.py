"""The deployments: they match the code, no event is lost, and nothing pays without being started."""

import inspect
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.utilities.schema_tools.hydration import HydrationContext, hydrate
from pydantic import TypeAdapter, ValidationError

from apixo import VideoRequest
from deployments.connection import SetupError
from deployments.local.prefect_server import PrefectServer
from deployments.setup import deploy
from deployments.setup.blocks import Saved
from flows.generate_batch import generate_batch
from flows.record.keys import calendar_key
from tests.support.fork_server import ForkServer

TEXTS = {file: (deploy.ROOT / file).read_text() for file in (deploy.MAIN, deploy.EXAMPLES)}
MAIN: list[dict[str, Any]] = yaml.safe_load(TEXTS[deploy.MAIN])["deployments"]
EXAMPLES: list[dict[str, Any]] = yaml.safe_load(TEXTS[deploy.EXAMPLES])["deployments"]
DEPLOYMENTS = MAIN + EXAMPLES
WANTED = [item for text in TEXTS.values() for item in deploy.wanted_deployments(text)]
TRIGGERS = [(item, trigger) for item in DEPLOYMENTS for trigger in item.get("triggers", ())]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda item: item["name"])
def test_every_deployment_uses_an_existing_flow_and_parameters(
    deployment: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(deploy.ROOT)
    flow: Flow[..., Any] = load_flow_from_entrypoint(deployment["entrypoint"])
    parameters = set(inspect.signature(flow.fn).parameters)
    used = {*deployment.get("parameters", {})}
    for trigger in deployment.get("triggers", ()):
        used |= {*trigger["parameters"]}
    assert used <= parameters
    (wanted,) = [item for item in WANTED if item.name == deployment["name"]]
    assert wanted.flow == flow.name
    assert deployment["description"]
    assert deployment["tags"]
    assert deployment["work_pool"]["name"] == deploy.POOL
    assert deployment["work_pool"]["work_queue_name"] in deploy.QUEUES


@pytest.mark.parametrize(("deployment", "trigger"), TRIGGERS, ids=lambda item: item["name"])
def test_trigger_expressions_cannot_fail_before_a_run_exists(
    deployment: dict[str, Any], trigger: dict[str, Any]
) -> None:
    def expressions(value: object) -> list[str]:
        if isinstance(value, dict):
            return [found for part in value.values() for found in expressions(part)]
        return [part.partition("}}")[0] for part in value.split("{{")[1:]] if isinstance(value, str) else []

    for expression in expressions(trigger["parameters"]):
        assert "default(" in expression or expression.strip() == "flow_run.id | string", expression
    if "request" in trigger["parameters"]:
        assert deployment["enforce_parameter_schema"] is False


def test_only_event_deployments_accept_unchecked_parameters() -> None:
    """For all others, Prefect rejects invalid parameters before it creates a run."""
    tolerant = [item["name"] for item in DEPLOYMENTS if not item.get("enforce_parameter_schema", True)]
    assert tolerant == ["generate-video-on-event", "after-storyboard"]


@pytest.mark.parametrize(
    "prompt",
    [
        "{{ 7 * 7 }} {% for a in ().__class__.__mro__ %}{{ a }}{% endfor %} {# gone #}",
        '", "duration": 12, "prompt": "another',
        "\\ \" ' </script> & \n\u2028\u202e\x1b[2J \U0001f3ac",
        '{"__prefect_kind": "workspace_variable", "variable_name": "x"}',
    ],
)
def test_prompt_in_an_event_is_not_rendered_as_a_template(prompt: str) -> None:
    """Prefect renders the parameters when the event arrives, and looks for placeholders again when creating the run."""
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
            parameters_of_run = hydrate(filled, HydrationContext(render_workspace_variables=True))
            assert parameters_of_run["request"]["prompt"] == prompt
            assert "duration" not in parameters_of_run["request"]


def test_only_the_collector_has_a_concurrency_limit() -> None:
    limits = {item["name"]: item["concurrency_limit"] for item in DEPLOYMENTS if "concurrency_limit" in item}
    assert limits == {
        "collect-videos": {"limit": 1, "collision_strategy": "ENQUEUE"}
    }  # so no run is shown as cancelled


def test_only_the_collector_has_an_active_schedule() -> None:
    active = [item["name"] for item in DEPLOYMENTS for plan in item.get("schedules", ()) if plan.get("active", True)]
    assert active == ["collect-videos"]


def test_main_deployments_cannot_pay_by_default_and_listen_only_to_own_events() -> None:
    names = [
        "generate-video",
        "generate-video-on-event",
        "check-setup",
        "report-costs",
        "generate-batch",
        "generate-shard",
    ]
    names += ["preview-then-final", "resolve-video", "collect-videos", "previews-then-finals"]
    assert [item["name"] for item in MAIN] == names
    defaults = {item["name"]: item["parameters"] for item in MAIN if "parameters" in item}
    assert defaults == {"generate-video-on-event": {"request": {}}}
    with pytest.raises(ValidationError, match="prompt"):
        VideoRequest.model_validate(defaults["generate-video-on-event"]["request"])
    assert [item["name"] for item in MAIN if item.get("schedules")] == ["collect-videos"]
    expected_events = {item["name"]: trigger["expect"] for item in MAIN for trigger in item.get("triggers", ())}
    assert expected_events == {
        "generate-video-on-event": ["sora.video.requested"],
        "collect-videos": ["apixo.task.finished"],
    }


def test_commented_schedule_is_valid_when_uncommented() -> None:
    lines = [line.replace("    # ", "    ", 1) for line in TEXTS[deploy.MAIN].splitlines()]
    start = next(
        number for number, line in enumerate(lines) if line == "    schedules:" and "spring" in lines[number + 3]
    )
    text = (
        TEXTS[deploy.MAIN].splitlines()[:start]
        + lines[start : start + 6]
        + TEXTS[deploy.MAIN].splitlines()[start + 6 :]
    )
    (batch,) = [item for item in yaml.safe_load("\n".join(text))["deployments"] if item["name"] == "generate-batch"]
    (schedule,) = batch["schedules"]
    created = DeploymentScheduleCreate.model_validate(
        {"schedule": {"cron": schedule["cron"], "timezone": schedule["timezone"]}}
        | {name: schedule[name] for name in ("slug", "active", "parameters")}
    )
    assert created.active
    assert created.parameters.keys() <= inspect.signature(generate_batch.fn).parameters.keys()
    assert calendar_key(created.parameters["calendar"]) == created.slug


def test_example_calendar_exists_at_the_deployments_path() -> None:
    (batch,) = [item for item in EXAMPLES if item["name"] == "example-batch"]
    assert (deploy.ROOT / batch["parameters"]["calendar"]).is_file()


def test_code_version_changes_only_with_the_code(tmp_path: Path) -> None:
    for part in ("prefect.yaml", "flows", "apixo", "deployments"):
        source = deploy.ROOT / part
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / part)
    before = deploy.code_version(tmp_path)
    (tmp_path / "notes.py").write_text("x = 1\n")
    (tmp_path / "flows/__pycache__").mkdir(exist_ok=True)
    assert deploy.code_version(tmp_path) == before
    for file in (deploy.MAIN, deploy.EXAMPLES):
        (tmp_path / file).write_text(TEXTS[file] + "# changed\n")
        before, last = deploy.code_version(tmp_path), before
        assert before != last
    (tmp_path / "flows/record/keys.py").write_text("# changed\n")
    assert deploy.code_version(tmp_path) != before


def test_code_version_does_not_read_data_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README has MinIO keep its data in the checkout, with a folder for each video."""
    shutil.copy(deploy.ROOT / deploy.MAIN, tmp_path)
    for folder in ("deployments/examples", "minio-data/videos"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(deploy.ROOT / deploy.EXAMPLES, tmp_path / deploy.EXAMPLES)
    listed: list[str] = []
    scandir = os.scandir

    def recording_scandir(path: str) -> Any:
        listed.append(str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", recording_scandir)
    deploy.code_version(tmp_path)
    assert listed
    assert not [path for path in listed if "minio-data" in path]


async def test_deploy_without_prefect_yaml_is_a_setup_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy, "ROOT", tmp_path)
    with pytest.raises(SetupError, match=r"no prefect\.yaml"):
        await deploy.deploy(deploy.MAIN)


OLD_PREFECT_YAML = """
deployments:
  - name: generate-batch
    version: old
    entrypoint: flows/generate_batch.py:generate_batch
    work_pool: {name: sora, work_queue_name: videos}
    parameters: {calendar: deployments/calendars/example.csv, key: example-calendar}
    schedules:
      - {cron: "0 6 * * *", timezone: UTC, slug: every-morning, active: true}
    triggers:
      - {type: event, name: sora-old, expect: [x], match: {prefect.resource.id: "*"}, posture: Reactive, threshold: 1}
"""


@pytest.fixture
def server(prefect_server: PrefectServer, forks: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses the session's server, also for the Prefect commands that a deployment runs. Those are forked."""
    monkeypatch.setattr(deploy, "PREFECT", forks.command("prefect"))
    for name, value in prefect_server.environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("server")
async def test_upgrade_removes_old_schedules_and_triggers_but_keeps_user_schedules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect itself would keep existing schedules if prefect.yaml has none."""
    for part in ("flows", "deployments"):
        (tmp_path / part).symlink_to(deploy.ROOT / part)
    (batch,) = [item for item in MAIN if item["name"] == "generate-batch"]
    monkeypatch.setattr(deploy, "ROOT", tmp_path)
    (tmp_path / deploy.MAIN).write_text(OLD_PREFECT_YAML)
    await deploy.deploy(deploy.MAIN)
    name = "generate-batch/generate-batch"
    async with get_client() as client:
        deployment = await client.read_deployment_by_name(name)
        assert deployment.parameters["calendar"]
        assert [(item.slug, item.active) for item in deployment.schedules] == [("every-morning", True)]
        user_schedule = DeploymentScheduleCreate(
            schedule=CronSchedule(cron="0 7 * * *"), active=False, parameters={"calendar": "mine.csv"}
        )
        await client.create_deployment_schedules(deployment.id, [user_schedule])
        (tmp_path / deploy.MAIN).write_text(yaml.safe_dump({"deployments": [batch]}))
        saved = await deploy.deploy(deploy.MAIN)
        assert Saved("schedule", "generate-batch: every-morning", "removed") in saved
        deployment = await client.read_deployment_by_name(name)
        assert deployment.parameters == {}
        assert [(item.slug, item.active, item.parameters) for item in deployment.schedules] == [
            (None, False, {"calendar": "mine.csv"})
        ]
        assert await client.read_automations_by_name("sora-old") == []
        second_run = await deploy.deploy(deploy.MAIN)
        assert {item.outcome for item in second_run} == {"unchanged"}
        await client.delete_deployment(deployment.id)


@pytest.mark.usefixtures("server")
async def test_examples_are_deployed_separately() -> None:
    for outcome in ("created", "unchanged"):
        saved = await deploy.deploy(deploy.EXAMPLES)
        assert {(item.name, item.outcome) for item in saved if item.slug == "deployment"} == {
            ("example-batch", outcome), ("write-storyboard", outcome), ("after-storyboard", outcome),
        }  # fmt: skip
    async with get_client() as client:
        for trigger in await client.read_automations_by_name("sora-storyboard-completed"):
            await client.delete_automation(trigger.id)
        for wanted in deploy.wanted_deployments(TEXTS[deploy.EXAMPLES]):
            if found := await deploy.deployed(client, wanted):
                await client.delete_deployment(found.id)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (
            {"key": None, "request": {"prompt": "A fox", "duration": None, "image_urls": None}, "wait": None},
            {"key": "an-id", "request": {"prompt": "A fox", "duration": None, "image_urls": None}, "wait": False},
        ),
        ({"key": "", "request": None}, {"key": "an-id", "request": {}, "wait": False}),
        (
            {"key": 42, "request": {"prompt": "A fox"}, "wait": True},
            {"key": "42", "request": {"prompt": "A fox"}, "wait": True},
        ),
        ({}, {"key": "an-id", "request": {}, "wait": False}),
    ],
)  # fmt: skip
def test_null_or_empty_event_fields_count_as_absent(payload: dict[str, Any], expected: dict[str, Any]) -> None:
    (trigger,) = [trigger for item, trigger in TRIGGERS if item["name"] == "generate-video-on-event"]
    context = {"event": SimpleNamespace(id="an-id", payload=payload)}
    templates = {
        name: {"__prefect_kind": "jinja", "template": value} if isinstance(value, str) else value
        for name, value in trigger["parameters"].items()
    }
    rendered = hydrate(templates, HydrationContext(render_jinja=True, jinja_context=context))
    rendered["wait"] = TypeAdapter(bool).validate_python(rendered["wait"])  # as the flow validates it
    assert rendered == expected
