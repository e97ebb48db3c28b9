"""Models on the command line: what each takes, a video of another one, and tags."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from apixo import catalog
from deployments.cli.app import app
from deployments.sandbox import Fault, SandboxServer
from tests.deployments.cli.sora import Sora
from tests.flows.conftest import StoredBlocks
from tests.support import unique


@pytest.fixture
def alone(tmp_path: Path) -> Sora:
    """The command line without a server."""
    return Sora(tmp_path, {"PREFECT_HOME": str(tmp_path / "home")}, [])


def shown(model: str) -> str:
    """What the command prints, in this process."""
    said = CliRunner().invoke(app, ["models", model])
    assert said.exit_code == 0, said.output
    return said.output


def test_the_catalog_is_shown_without_a_server(alone: Sora) -> None:
    listed = alone("models")
    assert listed.code == 0, listed.err
    assert [line.split()[0] for line in listed.out.splitlines()[1:]] == list(catalog.models())
    one = shown("kling-2-6")
    for words in ("image-to-video: 1 to 2 images", "1 to 1,000 characters", "5 or 10 s; 5 s by default", "required"):
        assert words in one
    assert "landscape (16:9), portrait (9:16), 1:1" in one
    veo = shown("veo-3-1")
    assert "REFERENCE_2_VIDEO: 1 to 3 images, mode fast, ratio 16:9" in veo
    hailuo = shown("hailuo-2-3")
    assert "JPEG or PNG, up to 20 MB, each side at least 301 pixels" in hailuo
    assert "pro-image-to-video: one image, 5 s" in hailuo
    assert "remove_watermark: boolean; true by default" in shown("sora-2")
    assert "remove_watermark" not in veo
    unknown = alone("models", "sora-9")
    assert unknown.code == 1
    assert "does not have 'sora-9'" in unknown.err


def test_a_catalog_of_ones_own_is_shown_or_said_to_be_broken(alone: Sora, tmp_path: Path) -> None:
    file = tmp_path / "models.json"
    file.write_text('{"future-1": {"source": "Our contract.", "modes": {"text": {"images": [0, null]}}}}')
    alone.environment["SORA_MODELS"] = str(file)
    shown = alone("models", "future-1")
    assert shown.code == 0, shown.err
    assert "text: 0 or more images" in shown.out
    file.write_text("{")
    broken = alone("models")
    assert broken.code == 1
    assert "SORA_MODELS points to an invalid catalog" in broken.err


def test_a_video_of_another_model_from_the_dry_run_to_the_list(
    sora: Sora, blocks: list[str], stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    order = ["generate", "Dunes at dusk", "--model", "kling-2-6", "--key", key, "--tag", "spring", *blocks]
    assert "options.sound: is required by kling-2-6" in sora(*order).all
    order += ["-o", "sound=true", "--fallback-model", "kling-3-0-turbo", "--duration", "5"]
    dry = sora(*order, "--dry-run")
    assert dry.code == 0, dry.err
    assert "5 s, landscape, text-to-video with kling-2-6" in dry.out
    assert "unknown: the block has no price of kling-2-6 in prices" in dry.out
    assert sandbox.record.submits() == []

    sandbox.faults.add(Fault(call="submit", kind="http_404", model="kling-2-6"))
    made = sora(*order, "--aspect-ratio", "1:1")
    assert made.code == 0, made.err
    assert [request.model for request in sandbox.record.submits()] == ["kling-2-6", "kling-3-0-turbo"]
    assert json.loads(sandbox.record.submits()[1].body)["input"]["aspect_ratio"] == "1:1"

    place = ["--archive", stored.name]
    shown = sora("show", key, *place)
    assert "attempt 2  archived, kling-3-0-turbo, task" in shown.out
    assert "tags       spring" in shown.out
    assert key in sora("list", "--tag", "spring", *place).out
    assert key not in sora("list", "--tag", "spring", "--tag", unique("autumn"), *place).out


@pytest.mark.parametrize("flags", [["--dry-run"], []], ids=["dry run", "run"])
def test_who_asks_for_a_model_that_nobody_knows_is_told_that_it_is_unchecked(
    flags: list[str], sora: Sora, blocks: list[str], sandbox: SandboxServer, key: str
) -> None:
    said = sora("generate", "Dunes", "--model", "future-9", "-o", "foo=1", "--key", key, *flags, *blocks)
    assert "the catalog does not have future-9: the request is sent as it is, unchecked" in said.err
    assert [json.loads(post.body)["input"]["foo"] for post in sandbox.record.submits()] == ([] if flags else [1])


@pytest.mark.parametrize("option", ["sound", "=true", "sound="])
def test_an_option_has_a_name_and_a_value(option: str, sora: Sora, blocks: list[str], sandbox: SandboxServer) -> None:
    said = sora("generate", "Dunes", "--model", "kling-2-6", "--option", option, *blocks)
    assert said.code == 2
    assert sandbox.record.submits() == []
