"""Prefect's own checks of a block, and its logo without the network."""

from pathlib import Path

import prefect
import pytest
from prefect.blocks.core import Block
from prefect.testing.standard_test_suites.blocks import BlockStandardTestSuite

from blocks import ApixoApi, VideoArchive


class OfflineLogo(BlockStandardTestSuite):
    """The suite downloads the logo, but a test must not depend on an external server. The logo URLs of Prefect's own
    blocks point to a fixed commit and so never change: one of those is known to be good."""

    def test_has_a_valid_image(self, block: type[Block]) -> None:
        home = Path(prefect.__file__).parent
        shipped = "".join(path.read_text() for path in [home / "filesystems.py", *(home / "blocks").glob("*.py")])
        assert str(block._logo_url) in shipped


class TestApixoApi(OfflineLogo):
    @pytest.fixture
    def block(self) -> type[Block]:
        return ApixoApi


class TestVideoArchive(OfflineLogo):
    @pytest.fixture
    def block(self) -> type[Block]:
        return VideoArchive


@pytest.mark.parametrize("block", [ApixoApi, VideoArchive])
def test_every_field_has_a_title_and_a_description(block: type[Block]) -> None:
    for name, field in block.model_fields.items():
        assert field.title, name
        assert field.description, name
        assert field.description[0].isupper(), name
        assert field.description.endswith("."), name


def test_block_type_slugs_do_not_change() -> None:
    assert ApixoApi.get_block_type_slug() == "apixo-api"
    assert VideoArchive.get_block_type_slug() == "video-archive"


def test_api_block_form_accepts_stored_secret_blocks() -> None:
    # A field of `Secret[str]` would refer to a block type of its own, which no Secret block in the UI has.
    definitions = ApixoApi.model_json_schema()["block_schema_references"]
    assert {name: reference["block_type_slug"] for name, reference in definitions.items()} == {
        "api_key": "secret",
        "callback_secret": "secret",
    }
