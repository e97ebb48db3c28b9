"""What a command prints before it does anything: help, invalid arguments, a missing server, setup from variables."""

import re
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from deployments.cli.app import app
from deployments.cli.generate import made_up_key
from deployments.cli.setup import variables
from deployments.connection import SetupError
from deployments.local.prefect_server import PrefectServer
from deployments.local.stack_info import StackInfo
from deployments.sandbox import SandboxServer
from flows.record.keys import check_key
from tests.deployments.cli.sora import Sora, one_line, setup_environment
from tests.flows.conftest import StoredBlocks
from tests.support import unique

COMMANDS = [
    "demo", "up", "sandbox", "setup", "deploy", "doctor", "generate", "batch", "list", "costs", "collect", "show",
    "resolve", "callbacks",
]  # fmt: skip


def test_help_works_without_a_server(tmp_path: Path) -> None:
    sora_without_server = Sora(tmp_path, {"PREFECT_HOME": str(tmp_path / "home")}, [])
    main_help = sora_without_server("--help")
    assert main_help.code == 0
    assert set(re.findall(r"^\W*([a-z]+) {2,}", main_help.out, re.MULTILINE)) >= set(COMMANDS)
    assert not (tmp_path / "home").exists()
    command_help = sora_without_server("generate", "--help")
    assert command_help.code == 0, command_help.err
    assert "If anything goes wrong, run it again with the same --key" in " ".join(command_help.out.split())
    assert sora_without_server().code != 1  # without a command, the help is shown too


INVALID_COMMANDS: list[tuple[list[str], int, str]] = [
    (["generate", "x", "--duration", "5"], 2, "duration: .*4, 8 or 12"),
    (["generate", "x", "--image", "file:///etc/passwd"], 2, "image_urls.*http"),
    (["generate", "x", "--model", "kling-2-6", "--option", "sound="], 2, "options.sound.*true or false"),
    (["generate", "x", "--key", "Bad Key"], 1, "'Bad Key' cannot be a key.*such as spring-sale-03"),
    (["generate", "x", "--key", ""], 1, "'' cannot be a key"),
    (["generate", "x", "--api", "nobody"], 1, "no apixo-api block named 'nobody'.*sora setup"),
    (["generate", "x", "--dry-run", "--archive", "nobody"], 1, "no video-archive block named 'nobody'.*sora setup"),
    (["show", "never-heard-of"], 1, "no record of never-heard-of"),
    (["resolve", "never-heard-of", "--resubmit", "--yes"], 1, "no record of never-heard-of"),
    (["resolve", "../escape", "--task-id", "t1"], 1, r"'\.\./escape' cannot be a key"),
]  # fmt: skip


def test_invalid_argument_is_rejected_in_one_line_and_pays_nothing(
    sora: Sora, stored: StoredBlocks, sandbox: SandboxServer
) -> None:
    def with_block_options(arguments: list[str]) -> list[str]:
        options = {"--api": stored.name, "--archive": stored.name}
        if arguments[0] == "show":
            del options["--api"]
        given = [part for name, value in options.items() if name not in arguments for part in (name, value)]
        return arguments + given

    waiting = list(INVALID_COMMANDS)
    while waiting:  # three at a time: each takes two seconds for its imports
        running = [(sora.start(*with_block_options(command)), code, message) for command, code, message in waiting[:3]]
        del waiting[:3]
        for process, code, message in running:
            assert re.search(message, one_line(sora.end(process), code))
    assert sandbox.record.all() == []


def test_wrong_usage_is_rejected_with_usage_message(sora: Sora, sandbox: SandboxServer, key: str) -> None:
    runs = {
        "give either --task-id": sora.start("resolve", key),
        "give either": sora.start("resolve", key, "--task-id", "t1", "--resubmit"),
        "Missing argument": sora.start("generate"),
        "either --portrait or --aspect-ratio": sora.start("generate", "x", "--portrait", "--aspect-ratio", "1:1"),
        "give --option as NAME VALUE": sora.start("generate", "x", "--option", "sound"),
        "such as sound true": sora.start("generate", "x", "--option", "=true"),
        "give --failed alone": sora.start("list", "--failed", "--open"),
        "valid integer": sora.start("generate", "x", "--duration", "four"),
    }
    for message, process in runs.items():
        result = sora.end(process)
        assert result.code == 2, result.all
        assert message in " ".join(re.sub(r"[^\w\s./-]", " ", result.err).split())
    assert sandbox.record.all() == []


def test_missing_server_error_names_how_to_start_one(sora: Sora, sandbox: SandboxServer) -> None:
    absent = sora.start("generate", "x", PREFECT_API_URL="http://127.0.0.1:9/api")
    none = sora.start("generate", "x", PREFECT_API_URL="", PREFECT_HOME=str(sora.folder / "empty"))
    setting_up = sora.start("setup", PREFECT_API_URL="http://127.0.0.1:9/api", APIXO_API_KEY="k")
    assert "The Prefect server does not answer" in one_line(sora.end(absent), 1)
    assert re.search("No Prefect server.*sora up.*PREFECT_API_URL", one_line(sora.end(none), 1))
    assert "The Prefect server does not answer" in one_line(sora.end(setting_up), 1)
    assert sandbox.record.all() == []


def test_setup_from_environment_prints_no_secret(
    sora: Sora, stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    name = unique("cli")
    archive = stored.archive
    environ = setup_environment(sandbox, archive)
    missing = sora("setup", "--no-deploy", "--name", name, **(environ | {"MINIO_SECRET_KEY": ""}))
    assert missing.code == 1
    assert "MINIO_SECRET_KEY" in missing.err
    assert "Traceback" not in missing.err
    invalid = one_line(sora("setup", "--no-deploy", "--name", name, **environ, APIXO_DEADLINE_SECONDS="soon"), 2)
    assert "deadline_seconds: " in invalid
    first, second = (sora("setup", "--no-deploy", "--name", name, **environ) for _ in range(2))
    assert (first.code, second.code) == (0, 0)
    assert [line.split()[-1] for line in first.out.splitlines()] == ["created"] * 4
    assert [line.split()[-1] for line in second.out.splitlines()] == ["unchanged"] * 4
    dry = sora("generate", "x", "--key", key, "--dry-run", "--api", name, "--archive", name)
    assert dry.code == 0, dry.err


def test_setup_no_check_saves_blocks_when_store_is_down(sora: Sora, prefect_server: PrefectServer) -> None:
    environ = {"APIXO_API_KEY": "k", "MINIO_ENDPOINT": "http://127.0.0.1:9", "MINIO_ACCESS_KEY": "k"}
    environ |= {"MINIO_SECRET_KEY": "s", "MINIO_SECURE": ""}
    command = ["setup", "--no-deploy", "--name", unique("cli")]
    assert "Nothing was saved" in one_line(sora(*command, **environ), 1)
    saved = sora(*command, "--no-check", **environ)
    assert saved.code == 0, saved.all
    assert [line.split()[0] for line in saved.out.splitlines()] == ["secret", "apixo-api", "video-archive"]
    assert "! " in saved.err
    assert "The bucket" in saved.err


def test_settings_of_local_stack_are_not_used_for_another_store_or_api() -> None:
    store = {"MINIO_ENDPOINT": "127.0.0.1:9000", "MINIO_SECURE": "false"}
    api = {"APIXO_BASE_URL": "http://127.0.0.1:8700", "APIXO_ALLOW_PRIVATE_HOSTS": "true"}
    stack = StackInfo({}, store | api, {})
    assert variables(stack, {"MINIO_BUCKET": "mine"}) == store | api | {"MINIO_BUCKET": "mine"}
    assert variables(stack, {"MINIO_ENDPOINT": " ", "APIXO_BASE_URL": api["APIXO_BASE_URL"]}) == store | api
    other_store = {"MINIO_ENDPOINT": "https://minio.example.com"}
    assert variables(stack, other_store) == api | other_store
    other_api = {"APIXO_BASE_URL": "https://api.apixo.ai"}
    assert variables(stack, other_api) == store | other_api
    assert variables(stack, {"MINIO_ENDPOINT": "minio", "MINIO_SECURE": "true"})["MINIO_SECURE"] == "true"


def test_server_prints_its_url_only_once_it_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.cli.sandbox.serve", lambda *_, **__: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        rejected = CliRunner().invoke(app, ["sandbox", "--port", str(port)])
        assert isinstance(rejected.exception, SetupError)
        assert f"The sandbox cannot listen on 127.0.0.1, port {port}" in str(rejected.exception)
        assert rejected.output == ""
    started = CliRunner().invoke(app, ["sandbox", "--port", "0"])
    assert re.search(r"runs at http://127\.0\.0\.1:[1-9]\d+,", started.output), started.output


@given(st.text(max_size=80))
def test_generated_key_is_valid_and_unique(prompt: str) -> None:
    key = made_up_key(prompt)
    assert check_key(key) == key
    assert made_up_key(prompt) != key


def test_generated_key_starts_with_words_of_the_prompt() -> None:
    assert made_up_key("A red kite, over DUNES!").startswith("a-red-kite-over-dunes-20")
