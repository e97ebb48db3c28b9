"""`sora --help` is quick, since it imports no command; what it says of each is what the command says of itself."""

import subprocess
import sys
from typing import Final

import pytest
import typer
from typer.testing import CliRunner

from deployments.cli.app import COMMANDS, VERBOSE, LazyCommand, app, summary

SLOW: Final = {"av", "minio", "numpy", "obstore", "PIL", "prefect"}


def test_the_help_of_all_imports_nothing_slow() -> None:
    code = (
        "import sys\nfrom deployments.cli import main\nsys.argv = ['sora', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        f"imported = {SLOW!r} & sys.modules.keys()\nassert not imported, imported"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=90)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_all_says_what_the_command_says_of_itself(name: str) -> None:
    group = typer.main.get_command(app)
    lazy = group.get_command(None, name)  # type: ignore[attr-defined] # typer does not say that it is a group
    assert isinstance(lazy, LazyCommand)
    loaded = lazy.load()
    assert lazy.help is not None
    assert loaded.help is not None
    assert loaded.help.partition("\n\n")[0].replace("\n", " ") == lazy.help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    said = CliRunner().invoke(app, [name, "--help"])
    assert said.exit_code == 0, said.output
    assert f"sora {name}" in said.output
    first_words = summary(name).partition(":")[0].partition(",")[0]
    assert first_words in " ".join(said.output.split())


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
def test_the_option_that_shows_the_log_is_found_before_anything_is_imported(argument: str, shows: bool) -> None:
    assert bool(VERBOSE.fullmatch(argument)) is shows
