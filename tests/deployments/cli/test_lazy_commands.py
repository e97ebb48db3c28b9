"""`sora --help` is quick because it imports no command, and its summaries match each command's own help."""

import subprocess
import sys
from typing import Final

import pytest
import typer
from typer.testing import CliRunner

from deployments.cli.app import COMMANDS, VERBOSE, LazyCommand, app, summary

SLOW: Final = {"av", "minio", "numpy", "obstore", "PIL", "prefect"}


def test_main_help_imports_no_slow_packages() -> None:
    code = (
        "import sys\nfrom deployments.cli import main\nsys.argv = ['sora', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        f"imported = {SLOW!r} & sys.modules.keys()\nassert not imported, imported"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=90)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_main_help_summary_matches_the_commands_own_help(name: str) -> None:
    group = typer.main.get_command(app)
    lazy = group.get_command(None, name)  # type: ignore[attr-defined] # typer's type does not show that it is a group
    assert isinstance(lazy, LazyCommand)
    loaded = lazy.load()
    assert lazy.help is not None
    assert loaded.help is not None
    assert loaded.help.partition("\n\n")[0].replace("\n", " ") == lazy.help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_its_summary(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert f"sora {name}" in result.output
    first_words = summary(name).partition(":")[0].partition(",")[0]
    assert first_words in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("argument", "shows"),
    [
        ("-v", True),
        ("--verbose", True),
        ("-yv", True),
        ("-vkdove-1", True),
        ("-kdove", False),
        ("--no-wait", False),
        ("-y", False),
        ("dive", False),
    ],
)
def test_verbose_option_is_detected_before_imports(argument: str, shows: bool) -> None:
    assert bool(VERBOSE.fullmatch(argument)) is shows
