"""Models on the command line: what each accepts, a video from another model, and tags."""

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
def sora_without_server(tmp_path: Path) -> Sora:
    """The command line without a server."""
    return Sora(tmp_path, {"PREFECT_HOME": str(tmp_path / "home")}, [])


def shown(model: str) -> str:
    """The output of `sora models MODEL`, run in this process."""
    result = CliRunner().invoke(app, ["models", model])
    assert result.exit_code == 0, result.output
    return result.output


def test_catalog_is_shown_without_a_server(sora_without_server: Sora) -> None:
    listed = sora_without_server("models")
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
    unknown = sora_without_server("models", "sora-9")
    assert unknown.code == 1
    assert "does not have 'sora-9'" in unknown.err


def test_custom_catalog_is_shown_or_reported_as_invalid(sora_without_server: Sora, tmp_path: Path) -> None:
    file = tmp_path / "models.json"
    file.write_text('{"future-1": {"source": "Our contract.", "modes": {"text": {"images": [0, null]}}}}')
    sora_without_server.environment["SORA_MODELS"] = str(file)
    shown = sora_without_server("models", "future-1")
    assert shown.code == 0, shown.err
    assert "text: 0 or more images" in shown.out
    file.write_text("{")
    broken = sora_without_server("models")
    assert broken.code == 1
    assert "SORA_MODELS points to an invalid catalog" in broken.err


def test_fallback_model_generates_the_video_and_list_filters_by_tag(
    sora: Sora, blocks: list[str], stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    command = ["generate", "Dunes at dusk", "--model", "kling-2-6", "--key", key, "--tag", "spring", *blocks]
    assert "options.sound: is required by kling-2-6" in sora(*command).all
    command += ["-o", "sound=true", "--fallback-model", "kling-3-0-turbo", "--duration", "5"]
    dry = sora(*command, "--dry-run")
    assert dry.code == 0, dry.err
    assert "5 s, landscape, text-to-video with kling-2-6" in dry.out
    assert "unknown: the block has no price of kling-2-6 in prices" in dry.out
    assert sandbox.record.submits() == []

    sandbox.faults.add(Fault(call="submit", kind="http_404", model="kling-2-6"))
    archived = sora(*command, "--aspect-ratio", "1:1")
    assert archived.code == 0, archived.err
    assert [request.model for request in sandbox.record.submits()] == ["kling-2-6", "kling-3-0-turbo"]
    assert json.loads(sandbox.record.submits()[1].body)["input"]["aspect_ratio"] == "1:1"

    place = ["--archive", stored.name]
    shown = sora("show", key, *place)
    assert "attempt 2  archived, kling-3-0-turbo, task" in shown.out
    assert "tags       spring" in shown.out
    assert key in sora("list", "--tag", "spring", *place).out
    assert key not in sora("list", "--tag", "spring", "--tag", unique("autumn"), *place).out


@pytest.mark.parametrize("flags", [["--dry-run"], []], ids=["dry run", "real run"])
def test_unknown_model_is_sent_unchecked_with_a_warning(
    flags: list[str], sora: Sora, blocks: list[str], sandbox: SandboxServer, key: str
) -> None:
    result = sora("generate", "Dunes", "--model", "future-9", "-o", "foo=1", "--key", key, *flags, *blocks)
    assert "the catalog does not have future-9: the request is sent as it is, unchecked" in result.err
    assert [json.loads(post.body)["input"]["foo"] for post in sandbox.record.submits()] == ([] if flags else [1])
