"""Packages import only in one direction: deployments, flows, blocks, apixo. The check itself can fail."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
LINTER = Path(sys.executable).with_name("lint-imports")
PACKAGES = ["deployments", "flows", "blocks", "apixo"]


def settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def layers_of(contract: str) -> list[str]:
    (layers,) = [item["layers"] for item in settings()["tool"]["importlinter"]["contracts"] if item["id"] == contract]
    return list(layers)


MODULES = {
    package: [name.strip() for layer in layers_of(package) for name in layer.split("|")]
    for package in ("flows", "deployments")
}
"""The modules of each package, from the top layer down."""


def lint(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LINTER, "--no-cache", *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_packages_follow_import_rules() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout
    assert "4 kept, 0 broken" in result.stdout


@pytest.mark.parametrize("package", MODULES)
def test_layers_in_contributing_match_import_rules(package: str) -> None:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)
    rule = "".join(f"{layer.replace(' | ', '  ')}\n" for layer in layers_of(package))
    assert rule in [text for language, text in blocks if not language]


def test_every_package_has_import_rules_and_is_shipped() -> None:
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert found == set(PACKAGES)
    linter = settings()["tool"]["importlinter"]
    assert set(linter["root_packages"]) == found
    assert layers_of("rooms") == PACKAGES
    assert set(settings()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == found


@pytest.fixture(scope="module")
def valid_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty packages with the same names and rules as the real ones, without any forbidden import."""
    folder = tmp_path_factory.mktemp("rooms")
    for package in PACKAGES:
        (folder / package).mkdir()
        for name in ["__init__", *MODULES.get(package, ["module"])]:
            (folder / package / f"{name}.py").touch()
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (folder / "deployments" / "cli.py").write_text("import flows, blocks, apixo.module\n")
    linted = lint(folder)
    assert linted.returncode == 0, linted.stdout
    return folder


FORBIDDEN = {
    "apixo.module": (
        ("import blocks", "blocks"),
        ("from flows import record", "flows.record"),
        ("import prefect.flows", "prefect"),
        ("from minio import Minio", "minio"),
    ),
    "blocks.module": (
        ("import flows.record", "flows.record"),
        ("def late():\n    from deployments import setup", "deployments.setup"),
    ),
    "flows.record": (
        ("from deployments.local import *", "deployments.local"),
        ("from flows import signals", "flows.signals"),
    ),
    "flows.signals": (("import flows.paid_call", "flows.paid_call"),),
    "flows.paid_call": (("from flows.steps import submit", "flows.steps"),),
    "flows.media": (("import flows.paid_call", "flows.paid_call"),),
    "deployments.local": (("import deployments.cli", "deployments.cli"),),
    "deployments.receiver": (("from deployments import setup", "deployments.setup"),),
}
"""By module: forbidden import statements, and the module that each imports."""


def test_every_forbidden_import_is_reported(valid_packages: Path, tmp_path: Path) -> None:
    shutil.copytree(valid_packages, tmp_path, dirs_exist_ok=True)
    for module, lines in FORBIDDEN.items():
        (tmp_path / f"{module.replace('.', '/')}.py").write_text("".join(f"{line}\n" for line, _ in lines))
    broken = lint(tmp_path)
    assert broken.returncode == 1, broken.stdout
    reported = broken.stdout.splitlines()
    missed = [
        f"{module} -> {target}"
        for module, lines in FORBIDDEN.items()
        for _, target in lines
        if not any(f"{module} -> {target} " in f"{line} " for line in reported)
    ]
    assert not missed, broken.stdout


def readme_script() -> str:
    (script,) = re.findall(r"```python\n(import asyncio.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return str(script)


def test_readme_script_matches_type_checked_file() -> None:
    checked = (ROOT / "tests/readme_script.py").read_text()
    assert checked.partition("\n\n")[2] == readme_script()
    assert all((ROOT / package / "py.typed").exists() for package in ("apixo", "blocks", "flows"))


@pytest.mark.attack  # here, mypy reads all of Prefect; `make check` checks the same script with everything else
def test_readme_script_passes_strict_type_check(tmp_path: Path) -> None:
    script = readme_script()
    (tmp_path / "script.py").write_text(script)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={ROOT / '.local/tests/mypy'}", "script.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("package", "unwanted"),
    [
        ("apixo", ["prefect", "minio", "blocks", "flows", "deployments"]),
        ("deployments.cli.app", ["prefect", "av"]),  # otherwise, `sora --help` would take two seconds
    ],
)
def test_light_package_imports_nothing_heavy(package: str, unwanted: list[str]) -> None:
    code = f"import sys, {package}; print([name for name in {unwanted} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
