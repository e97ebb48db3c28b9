"""Imports point one way: deployments, flows, blocks, apixo. And the rule can fail."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
LINTER = Path(sys.executable).with_name("lint-imports")
ROOMS = ["deployments", "flows", "blocks", "apixo"]


def settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def lint(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LINTER, "--no-cache", *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_room_keeps_the_rule() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout
    assert "2 kept, 0 broken" in result.stdout


def test_the_rule_names_every_room_and_every_room_is_shipped() -> None:
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert found == set(ROOMS)
    linter = settings()["tool"]["importlinter"]
    assert set(linter["root_packages"]) == found
    (layers,) = [contract["layers"] for contract in linter["contracts"] if contract["type"] == "layers"]
    assert layers == ROOMS
    assert set(settings()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == found


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("apixo", "import blocks"),
        ("apixo", "from flows import module"),
        ("blocks", "import flows.module"),
        ("blocks", "def late():\n    from deployments import module"),
        ("flows", "from deployments.module import *"),
        ("apixo", "import prefect.flows"),
        ("apixo", "from minio import Minio"),
    ],
)
def test_an_import_the_wrong_way_is_found(room: str, line: str, tmp_path: Path) -> None:
    for name in ROOMS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "module.py").touch()
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (tmp_path / "deployments" / "module.py").write_text("import flows, blocks, apixo.module\n")
    clean = lint(tmp_path)
    assert clean.returncode == 0, clean.stdout
    (tmp_path / room / "module.py").write_text(f"{line}\n")
    broken = lint(tmp_path)
    assert broken.returncode == 1, broken.stdout
    assert "1 broken" in broken.stdout
    assert f"{room}.module" in broken.stdout


@pytest.mark.parametrize(
    ("room", "unwanted"),
    [
        ("apixo", ["prefect", "minio", "blocks", "flows", "deployments"]),
        ("deployments.cli.app", ["prefect", "av"]),  # or `sora --help` would take two seconds
    ],
)
def test_a_light_room_pulls_in_nothing_heavy(room: str, unwanted: list[str]) -> None:
    code = f"import sys, {room}; print([name for name in {unwanted} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
