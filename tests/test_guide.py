"""The documents match the code: every code block parses, and every name in them exists."""

import ast
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args

import prefect.settings
import pytest
import typer.main
import yaml
from prefect.events.schemas.automations import AutomationCore
from prefect.events.schemas.deployment_triggers import DeploymentTriggerTypes
from prefect.server.schemas.states import StateType
from pydantic import TypeAdapter

from apixo.catalog import USER_CATALOG, models, problem
from blocks import ApixoApi, VideoArchive
from deployments.cli.app import LazyGroup, app
from deployments.cli.models import row
from deployments.setup.deploy import EXAMPLES, MAIN, wanted_deployments
from flows.batch.calendar_rows import FIELDS, Row
from flows.batch.calendars import parse_calendar
from flows.record.generation import State
from flows.signals.events import BALANCE_LOW, BUDGET_LOW, PROVIDER_BLOCKED, TASK_FINISHED, Happening
from tests.attack.model.invariants import TRANSITIONS

ROOT: Final = Path(__file__).parent.parent
TOP_LEVEL: Final = ("README.md", "SECURITY.md", "CONTRIBUTING.md")
DOCUMENTS: Final = [*(ROOT / name for name in TOP_LEVEL), *sorted((ROOT / "docs").glob("*.md"))]
CODE: Final = "".join(
    path.read_text() for room in ("flows", "deployments", "tests") for path in ROOT.glob(f"{room}/**/*.py")
)
FOREIGN: Final = ("MINIO_ROOT_", "PREFECT_REDIS_")
"""Prefixes of variables of programs that the project does not install: MinIO itself, and `prefect-redis`."""

BLOCK: Final = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def blocks(document: Path, language: str) -> Iterator[str]:
    """The code blocks in one language."""
    return (found[3] for found in BLOCK.finditer(document.read_text()) if found[2] == language)


def triggers(content: Any) -> Iterator[dict[str, Any]]:
    """Every deployment trigger in a YAML document."""
    if isinstance(content, dict):
        yield from content.get("triggers", ())
        for value in content.values():
            yield from triggers(value)
    elif isinstance(content, list):
        for item in content:
            yield from triggers(item)


def test_yaml_is_valid_for_prefect_and_matches_shipped_triggers(document: Path) -> None:
    files = [yaml.safe_load((ROOT / file).read_text()) for file in (MAIN, EXAMPLES)]
    shipped = {item["name"]: item for item in triggers(files)}
    for text in blocks(document, "yaml"):
        content = yaml.safe_load(text)
        if "trigger" in content:
            AutomationCore.model_validate(content)
        for trigger in triggers(content):
            TypeAdapter(DeploymentTriggerTypes).validate_python(trigger)
            known = shipped.get(trigger["name"], trigger)  # an example may leave a parameter out
            assert trigger | {"parameters": None} == known | {"parameters": None}


def test_json_and_calendars_can_be_parsed(document: Path) -> None:
    for text in blocks(document, "json"):
        lines = text.splitlines()
        if all(line.startswith("{") and line.endswith("}") for line in lines):
            assert all(isinstance(row, Row) for row in parse_calendar(text.encode(), name="calendar.jsonl"))
        else:
            json.loads(text)
    for text in blocks(document, "csv"):
        assert all(isinstance(row, Row) for row in parse_calendar(text.encode(), name="calendar.csv"))


def test_python_compiles_and_its_imports_exist(document: Path) -> None:
    for text in blocks(document, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                assert [item.name for item in node.names if not hasattr(module, item.name)] == []
            elif isinstance(node, ast.Import):
                for item in node.names:
                    importlib.import_module(item.name)


def test_column_table_is_complete(document: Path) -> None:
    table = re.search(r"^\| column \|.*?\n\n", document.read_text(), re.MULTILINE | re.DOTALL)
    assert table or document.name != "guide.md"
    assert not table or sorted(re.findall(r"^\| `(\w+)`", table[0], re.MULTILINE)) == sorted(FIELDS)
    for listed in re.findall(r"Columns: .*?\.(?: \||\n\n)", document.read_text(), re.DOTALL):
        assert set(FIELDS) <= set(re.findall(r"\w+", listed)), listed


def test_block_field_tables_are_complete(document: Path) -> None:
    if document.name != "configuration.md":
        return
    for block, title in ((ApixoApi, "apixo-api"), (VideoArchive, "video-archive")):
        (table,) = re.findall(rf"^## Block `{title}`\n\n(.*?)\n\n", document.read_text(), re.MULTILINE | re.DOTALL)
        named = [name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])]
        assert sorted(named) == sorted(block.model_fields)


def test_commands_and_their_options_exist(document: Path) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, LazyGroup)
    text = re.sub(r"\\\n\s*", " ", document.read_text())
    for words in re.findall(r"(?:\.venv/bin/|`|^\s*|[A-Z_]+=\S+ )sora ([^`#\n|]+)", text, re.MULTILINE):
        name, *rest = words.split()
        lazy = group.get_command(None, name)
        assert lazy or name.startswith("-"), words
        command = lazy.load() if lazy else group
        options = {option for item in command.params for option in (*item.opts, *item.secondary_opts)} | {"--help"}
        assert {word.rstrip(",.;") for word in rest if re.match(r"--?[a-z]", word)} <= options, words


def test_deployments_exist(document: Path) -> None:
    wanted = {f"{item.flow}/{item.name}" for item in wanted_deployments((ROOT / MAIN).read_text())}
    named = re.findall(
        r"(?:deployments/name/|deployment run |schedule (?:ls|resume) )([a-z-]+/[a-z-]+)", document.read_text()
    )
    assert set(named) <= wanted


def test_events_exist(document: Path) -> None:
    states = {state.value.title() for state in StateType} | {"heartbeat"}
    others = {"sora.video.requested", TASK_FINISHED, PROVIDER_BLOCKED, BUDGET_LOW, BALANCE_LOW}
    known = others | {f"sora.generation.{name}" for name in get_args(Happening)}
    known |= {f"prefect.flow-run.{name}" for name in states}
    pattern = r"\b(?:sora\.(?:generation|video|provider|budget|balance)|apixo\.task|prefect\.flow-run)\.[A-Za-z]+"
    assert set(re.findall(pattern, document.read_text())) <= known
    if document.name == "events.md":
        assert set(re.findall(r"^\| `([^`]+)` \|", document.read_text(), re.MULTILINE)) == others


def test_documented_transitions_match_model(document: Path) -> None:
    if document.name != "ledger.md":
        return
    arrows = re.findall(r"^ *(?:- `)?(\w+)`? (?:-->|→) `?(\w+)`?:", document.read_text(), re.MULTILINE)
    assert len(arrows) == len(set(arrows))
    assert {(State(old), State(new)) for old, new in arrows} == {
        (old, new) for old, news in TRANSITIONS.items() for new in news
    }


def test_variables_exist(document: Path) -> None:
    fields = {f"APIXO_{name.upper()}" for name in ApixoApi.model_fields}
    fields |= {f"MINIO_{name.upper()}" for name in VideoArchive.model_fields}
    for name in set(re.findall(r"\b(?:PREFECT|APIXO|MINIO|SORA)_[A-Z0-9_]*[A-Z0-9]\b", document.read_text())):
        if name.startswith("PREFECT_") and not name.startswith(FOREIGN):
            assert hasattr(prefect.settings, name), name
        elif name.startswith("SORA_"):
            assert name in CODE, name
        elif not name.startswith(FOREIGN):
            assert name in fields, name


def test_files_exist(document: Path) -> None:
    named = re.findall(r"`((?:apixo|blocks|flows|deployments|tests|docs)/[\w./@-]*)`", document.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_link_targets_exist(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", BLOCK.sub("", document.read_text())):
        path, _, anchor = target.partition("#")
        found = (document.parent / path).resolve() if path else document
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", found.read_text()), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


def test_model_table_matches_catalog(document: Path) -> None:
    if document.name != "models.md":
        return
    rows = [row(name, found) for name, found in models({}).items()]
    wanted = [f"| `{cells[0]}` | {' | '.join(cells[1:])} |" for cells in rows]
    assert [line for line in document.read_text().splitlines() if line.startswith("| `")] == wanted


def test_catalogs_in_documents_can_be_used(document: Path, tmp_path: Path) -> None:
    for text in blocks(document, "json"):
        if '"modes"' in text:
            (tmp_path / "models.json").write_text(text)
            environ = {USER_CATALOG: str(tmp_path / "models.json")}
            assert problem(environ) is None
            assert models(environ).keys() >= json.loads(text).keys()
