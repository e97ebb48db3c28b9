"""What a first-time user of `sora` sees: on a terminal, on a pipe, in an empty folder."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from pydantic import SecretStr

from apixo import VideoRequest
from deployments.cli import console
from deployments.cli.app import COMMANDS
from deployments.sandbox import Fault, SandboxServer
from flows.batch.calendar_rows import Row
from flows.batch.calendars import parse_calendar
from tests.deployments.cli.sora import Sora, one_line, setup_environment
from tests.deployments.cli.terminal import run_on_terminal
from tests.flows.conftest import StoredBlocks
from tests.support import unique


def test_version_is_printed_without_a_server(tmp_path: Path) -> None:
    result = Sora(tmp_path, {"PREFECT_HOME": str(tmp_path / "home")}, [])("--version")
    assert result.code == 0
    assert result.out.startswith(f"sora-pipeline {version('sora-pipeline')}, Prefect {version('prefect')}")


def test_waiting_on_a_pipe_prints_each_state_and_the_next_poll(
    sora: Sora, blocks: list[str], sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault(call="status", kind="unknown_state", times=3))
    result = sora("generate", "A red kite", "--key", key, *blocks)
    assert result.code == 0, result.err
    waited = [line.split("wait: ")[1] for line in result.err.splitlines() if " wait: " in line]
    assert waited[0] == "waiting, next poll in 0 s"
    assert re.fullmatch(r"state .*, next poll in \d+ s", waited[1])
    assert waited[-1] == "finished"
    assert len(waited) < 6  # one line per state, not one per poll


def test_keys_and_object_names_are_not_wrapped_at_80_columns(
    sora: Sora, blocks: list[str], stored: StoredBlocks, sandbox: SandboxServer
) -> None:
    key = unique("a-key-that-is-as-long-as-those-that-are-made-up")
    generated = run_on_terminal(sora, "generate", "A red kite over dunes", "--key", key, *blocks)
    assert generated.code == 0, generated.out
    listed = run_on_terminal(sora, "list", *blocks[2:])
    lines = f"{generated.out}\n{listed.out}".splitlines()
    assert key in [line.strip() for line in lines]
    assert any(re.fullmatch(rf"  object +\S+/{key}/video.mp4", line) for line in lines)
    assert any(line.startswith("  sha256") and len(line.split()[1]) == 64 for line in lines)


async def test_json_output_is_valid_with_hostile_prompt_and_other_options(
    sora: Sora, stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    prompt = "A kite\x1b[2J \u202e [bold] \N{KITE}"
    await stored.generate(VideoRequest(prompt=prompt), key=key)
    (listed,) = json.loads(sora("list", "--json", "--archive", stored.name).out)
    shown = json.loads(sora("show", key, "--json", "--link", "--archive", stored.name).out)
    assert listed["request"]["prompt"] == shown["request"]["prompt"] == prompt
    assert "X-Amz-Signature" in shown.pop("link")
    assert shown == listed
    assert json.loads(sora("list", "--json", "--failed", "--archive", stored.name).out) == []


async def test_link_uses_the_gallery_or_public_url_if_configured(sora: Sora, stored: StoredBlocks, key: str) -> None:
    await stored.generate(VideoRequest(prompt="Dunes"), key=key)
    public = stored.archive.model_copy(update={"public_url": "https://public.example.com"})
    await public.save(stored.name, overwrite=True)
    link = sora("show", key, "--link", "--archive", stored.name).out.strip()
    assert re.fullmatch(rf"https://public.example.com/{stored.archive.bucket}/videos/.*/{key}/video.mp4", link)
    fields = {"gateway_url": "https://gallery.example.com", "gateway_secret": SecretStr("a-secret-of-some-length")}
    gallery = public.model_copy(update=fields)
    await gallery.save(stored.name, overwrite=True)
    link = sora("show", key, "--link", "--archive", stored.name).out.strip()
    assert link == gallery.gateway_link(key, "video.mp4")


def test_resolve_shows_the_record_before_prompting(
    sora: Sora, blocks: list[str], sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="reset_after"))
    assert "It is unknown whether" in one_line(sora("generate", "A fox", "--key", key, *blocks), 1)
    (paid,) = sandbox.record.charged()
    answers = {"Is there a task": "y", "Its task id": paid.task_id or ""}
    done = run_on_terminal(sora, "resolve", key, *blocks, answers=answers)
    assert done.code == 0, done.out
    output = " ".join(done.out.split())  # a terminal wraps lines
    assert output.index("unconfirmed") < output.index("Look for it in your APIXO account")
    assert "archived" in done.out
    assert len(sandbox.record.charged()) == 1
    again = run_on_terminal(sora, "resolve", key, *blocks)
    assert again.code == 1
    assert f"{key} is archived: there is nothing to resolve" in " ".join(again.out.split())


def test_setup_checks_credentials_before_saving(sora: Sora, stored: StoredBlocks, sandbox: SandboxServer) -> None:
    name, archive = unique("cli"), stored.archive
    environ = setup_environment(sandbox, archive)
    command = ["setup", "--no-deploy", "--name", name]
    for wrong, words in (("APIXO_API_KEY", "APIXO: "), ("MINIO_SECRET_KEY", "The store at ")):
        result = one_line(sora(*command, **{**environ, wrong: "not-the-right-one"}), 1)
        assert words in result
        assert "Nothing was saved" in result
    assert f"no apixo-api block named '{name}'" in one_line(sora("generate", "x", "--api", name), 1)
    saved = sora(*command, **environ)
    assert saved.code == 0, saved.err
    assert f"--dry-run --api {name} --archive {name}" in saved.err


def test_printed_commands_can_be_pasted_into_a_shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    program = tmp_path / ".venv" / "bin" / "sora"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    hint = "Run `sora show kite-01 --link`; the sora pipeline, my/sora show and sora-videos stay."
    monkeypatch.setattr(sys, "argv", [str(program)])
    monkeypatch.setattr(sys, "executable", str(program.with_name("python")))
    assert console.pasteable(hint) == hint.replace("`sora show", "`.venv/bin/sora show")
    for command in (*(f"sora {name}" for name in COMMANDS), "prefect automation delete x", "prefect deployment run x",
                    "prefect event emit x"):  # fmt: skip
        assert console.pasteable(f"Run: {command}") == f"Run: .venv/bin/{command}"
    monkeypatch.setenv("PATH", str(program.parent))
    assert console.pasteable(hint) == hint


def test_init_creates_a_starter_folder_and_overwrites_nothing(
    sora: Sora, blocks: list[str], sandbox: SandboxServer
) -> None:
    name = 'spring [draft] #1: "new"'
    created = sora("init", name, PREFECT_API_URL="")
    assert created.code == 0, created.err
    folder = sora.folder / name
    assert f"{name}/calendar.csv\n" in created.out
    assert f"{name}/README.md." in created.err
    assert "export PREFECT_API_URL=http" in (folder / "README.md").read_text()
    assert {path.name for path in folder.iterdir()} == {"README.md", "calendar.csv", "prefect.yaml"}
    rows = parse_calendar((folder / "calendar.csv").read_bytes(), name="calendar.csv")
    assert all(isinstance(row, Row) for row in rows)
    assert len(rows) == 3
    (deployment,) = yaml.safe_load((folder / "prefect.yaml").read_text())["deployments"]
    assert deployment["parameters"]["calendar"] == str(folder / "calendar.csv")
    assert deployment["schedules"][0]["active"] is False
    dry = sora("batch", f"{name}/calendar.csv", "--dry-run", *blocks)
    assert dry.code == 0, dry.err
    assert "is not empty, so nothing was written" in one_line(sora("init", name), 1)
    assert sandbox.record.submits() == []


# The test above parses the files that `init` writes. This one runs Prefect's own command, which takes 13 s of CPU time.
@pytest.mark.attack
def test_deployment_created_by_init_can_be_deployed(sora: Sora) -> None:
    sora("init", "autumn")
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=sora.folder / "autumn",
        env={**sora.environment, "PREFECT_DEFAULT_WORK_POOL_NAME": "", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    # This server may have no work pool. By the time Prefect reports that, it has loaded the flow.
    assert "successfully created" in done.stdout or "work pool" in (done.stdout + done.stderr).lower(), done.stderr
    assert "ModuleNotFoundError" not in done.stdout + done.stderr


def test_installed_completion_completes_commands_and_options(tmp_path: Path) -> None:
    script = """
    sora --install-completion >/dev/null; source "$HOME/.bash_completions/sora.sh"
    COMP_WORDS=(sora res) COMP_CWORD=1; _sora_completion sora; echo "${COMPREPLY[@]}"
    COMP_WORDS=(sora list --unc) COMP_CWORD=2; _sora_completion sora; echo "${COMPREPLY[@]}"
    """
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["resolve", "--unconfirmed"], done.stderr
