"""Both blocks, saved to and loaded from a real Prefect API that runs inside this process."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import PrefectClient
from prefect.settings import (
    PREFECT_API_BLOCKS_REGISTER_ON_START,
    PREFECT_API_DATABASE_CONNECTION_URL,
    PREFECT_API_URL,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    PREFECT_SERVER_ANALYTICS_ENABLED,
    temporary_settings,
)

from blocks import ApixoApi, VideoArchive
from tests.support.prefect_home import prepare

KEY = "0123456789012345"
"""Digits with a leading zero: read as a number, the key would change."""


@dataclass
class StoredBlocks:
    """What the API returns for the documents, and the blocks that are loaded from them."""

    api_document: dict[str, Any]
    api_references: dict[str, Any]
    api_shown: dict[str, Any]
    archive_shown: dict[str, Any]
    api: ApixoApi
    rotated: ApixoApi
    archive: VideoArchive


# Not session-scoped: the settings changed here must be restored before tests of other files run.
@pytest.fixture(scope="module")
async def stored_blocks(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[StoredBlocks]:
    """The blocks, saved and loaded once for all tests."""
    from prefect.server.api.server import create_app  # noqa: PLC0415 - takes seconds, and only this fixture needs it

    database = prepare(tmp_path_factory.mktemp("own-prefect")) / "prefect.db"
    with (
        pytest.MonkeyPatch.context() as patch,
        temporary_settings(
            {
                PREFECT_API_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{database}",
                PREFECT_API_URL: None,
                PREFECT_API_BLOCKS_REGISTER_ON_START: False,  # dozens of block types that are not needed here
                PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False,
                PREFECT_SERVER_ANALYTICS_ENABLED: False,
            }
        ),
    ):
        # Each loaded block emits an event, and Prefect would start a second server process to receive it.
        patch.setattr("prefect.events.utilities.should_emit_events", lambda: False)
        async with PrefectClient(create_app(ephemeral=True, webserver_only=True)) as client:
            yield await _save_and_load(client)


async def _save_and_load(client: PrefectClient) -> StoredBlocks:
    for name in ("own-api-key", "own-callback-secret"):
        await Secret(value=KEY).asave(name, client=client)
    await ApixoApi(
        api_key=await Secret.aload("own-api-key", client=client),
        callback_url="https://callbacks.example.com",
        callback_secret=await Secret.aload("own-callback-secret", client=client),
        deadline_seconds=900,
    ).asave("own", client=client)
    await VideoArchive(endpoint="minio:9000", access_key="sora", secret_key=KEY, secure=False).asave(
        "own", client=client
    )
    api = await ApixoApi.aload("own", client=client)
    document = await client.read_block_document_by_name("own", "apixo-api", include_secrets=True)
    shown = await client.read_block_document_by_name("own", "apixo-api", include_secrets=False)
    archive_shown = await client.read_block_document_by_name("own", "video-archive", include_secrets=False)
    await Secret(value="rotated").asave("own-api-key", overwrite=True, client=client)
    return StoredBlocks(
        api_document=document.data,
        api_references=document.block_document_references,
        api_shown=shown.data,
        archive_shown=archive_shown.data,
        api=api,
        rotated=await ApixoApi.aload("own", client=client),
        archive=await VideoArchive.aload("own", client=client),
    )


async def test_loaded_blocks_equal_the_saved_ones(stored_blocks: StoredBlocks) -> None:
    assert stored_blocks.api.deadline_seconds == 900
    assert stored_blocks.archive.endpoint == "minio:9000"
    assert stored_blocks.archive.secret_key.get_secret_value() == KEY
    async with stored_blocks.api.client() as client:
        assert client._http.headers["authorization"] == f"Bearer {KEY}"
    assert stored_blocks.api.callback_url_for("k")


async def test_documents_reference_the_secret_blocks(stored_blocks: StoredBlocks) -> None:
    names = {field: found["block_document"]["name"] for field, found in stored_blocks.api_references.items()}
    assert names == {"api_key": "own-api-key", "callback_secret": "own-callback-secret"}


async def test_key_changed_in_its_secret_block_is_used(stored_blocks: StoredBlocks) -> None:
    async with stored_blocks.rotated.client() as client:
        assert client._http.headers["authorization"] == "Bearer rotated"


async def test_secrets_are_hidden_unless_requested(stored_blocks: StoredBlocks) -> None:
    assert KEY not in str(stored_blocks.api_shown)
    assert KEY not in str(stored_blocks.archive_shown)
    assert KEY not in f"{stored_blocks.api!r} {stored_blocks.archive!r}"
