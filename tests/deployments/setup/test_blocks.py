"""`save_blocks` with a real Prefect server: what it creates, what it keeps, and where secrets must not appear."""

import logging
import re
from typing import Any

import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import BlockDocumentUpdate
from prefect.client.schemas.objects import BlockDocument
from prefect.exceptions import ObjectNotFound
from pydantic import ValidationError

from blocks import ApixoApi, VideoArchive
from blocks.store_errors import StoreUnfitError
from deployments.connection import SetupError
from deployments.local.prefect_server import PrefectServer
from deployments.setup.blocks import Saved, make_bucket, save_blocks
from flows.record.pipeline_errors import PipelineError
from flows.resources import load_block
from tests.support import expire_records, unique

API_KEY = "sk-VERY-SECRET-KEY"
STORE_SECRET = "VERY-SECRET-PASSWORD"
CALLBACK_SECRET = "VERY-SECRET-TEXT"
COMPLETE = {
    "APIXO_API_KEY": API_KEY,
    "MINIO_ENDPOINT": "minio.example.com:9000",
    "MINIO_ACCESS_KEY": "sora",
    "MINIO_SECRET_KEY": STORE_SECRET,
}


@pytest.fixture
def name() -> str:
    """A name for both blocks that no other test uses."""
    return unique("blocks")


def outcomes(saved: list[Saved]) -> dict[str, str]:
    return {f"{item.slug}/{item.name}": item.outcome for item in saved}


async def read_documents(prefect: PrefectClient, name: str) -> list[BlockDocument]:
    """All documents of these blocks, as a reader of Prefect's API sees them, without secrets."""
    documents = []
    for slug, document in (
        ("apixo-api", name),
        ("video-archive", name),
        ("secret", f"apixo-api-key-{name}"),
        ("secret", f"apixo-callback-secret-{name}"),
    ):
        try:
            documents.append(await prefect.read_block_document_by_name(document, slug, include_secrets=False))
        except ObjectNotFound:
            continue
    return documents


async def test_blocks_are_created_once_and_second_run_changes_nothing(name: str, prefect: PrefectClient) -> None:
    first = await save_blocks(COMPLETE, name=name)
    assert outcomes(first) == {
        f"secret/apixo-api-key-{name}": "created",
        f"apixo-api/{name}": "created",
        f"video-archive/{name}": "created",
    }
    api, archive = await load_block(ApixoApi, name), await load_block(VideoArchive, name)
    assert api.api_key.value.get_secret_value() == API_KEY
    assert api.base_url == "https://api.apixo.ai"
    assert (archive.endpoint, archive.access_key) == ("minio.example.com:9000", "sora")
    assert archive.secret_key.get_secret_value() == STORE_SECRET
    assert archive.secure

    before = await read_documents(prefect, name)
    second = await save_blocks(COMPLETE, name=name)
    assert set(outcomes(second).values()) == {"unchanged"}
    assert outcomes(second).keys() == outcomes(first).keys()
    assert await read_documents(prefect, name) == before
    # Without any variables, the values that the blocks have are enough.
    assert set(outcomes(await save_blocks({}, name=name)).values()) == {"unchanged"}
    assert await read_documents(prefect, name) == before


CHANGES = [
    ("APIXO_PRICE_PER_SECOND", "0.10", "apixo-api"),
    ("APIXO_ALLOW_PRIVATE_HOSTS", "true", "apixo-api"),
    ("MINIO_BUCKET", "other-videos", "video-archive"),
    ("MINIO_SECRET_KEY", "ANOTHER-SECRET", "video-archive"),
    ("APIXO_API_KEY", "ANOTHER-KEY", "secret"),
]


async def test_changed_variable_updates_only_its_block(name: str, prefect: PrefectClient) -> None:
    environ = dict(COMPLETE)
    await save_blocks(environ, name=name)
    for variable, value, updated in CHANGES:
        environ[variable] = value
        saved = await save_blocks(environ, name=name)
        assert {item.slug: item.outcome for item in saved if item.outcome != "unchanged"} == {updated: "updated"}
        api = await prefect.read_block_document_by_name(name, "apixo-api")
        assert set(api.block_document_references) == {"api_key"}  # not a copy of the key
    assert set(outcomes(await save_blocks(environ, name=name)).values()) == {"unchanged"}


async def test_new_key_reaches_the_block_that_refers_to_it(name: str, prefect_server: PrefectServer) -> None:
    await save_blocks(COMPLETE, name=name)
    await save_blocks({"APIXO_API_KEY": "THE-NEXT-KEY"}, name=name)
    assert (await load_block(ApixoApi, name)).api_key.value.get_secret_value() == "THE-NEXT-KEY"
    secret: Secret[Any] = await Secret.aload(f"apixo-api-key-{name}")
    assert secret.value.get_secret_value() == "THE-NEXT-KEY"


async def test_missing_variables_keep_the_values_of_the_block(name: str, prefect_server: PrefectServer) -> None:
    await save_blocks(
        {**COMPLETE, "APIXO_DEADLINE_SECONDS": "99", "APIXO_PRICE_PER_SECOND": "0.5", "MINIO_BUCKET": "mine"}, name=name
    )
    await save_blocks({"APIXO_POLL_INTERVAL_SECONDS": "3", "MINIO_REGION": "eu", "MINIO_BUCKET": "  "}, name=name)
    api, archive = await load_block(ApixoApi, name), await load_block(VideoArchive, name)
    assert (api.deadline_seconds, api.poll_interval_seconds, str(api.price_per_second)) == (99, 3, "0.5")
    assert api.api_key.value.get_secret_value() == API_KEY
    assert (archive.bucket, archive.region) == ("mine", "eu")
    assert archive.secret_key.get_secret_value() == STORE_SECRET


async def test_model_prices_keep_their_exact_decimals(name: str, prefect_server: PrefectServer) -> None:
    prices = '{"kling-2-6": {"per_second": "0.10"}, "veo-3-1": {"per_video": 3}}'
    await save_blocks({**COMPLETE, "APIXO_PRICES": prices, "APIXO_CURRENCY": "USD"}, name=name)
    api = await load_block(ApixoApi, name)
    assert [str(api.price(model, 10)) for model in ("kling-2-6", "veo-3-1", "sora-2")] == ["1.00", "3", "None"]
    assert set(outcomes(await save_blocks({"APIXO_PRICES": prices}, name=name)).values()) == {"unchanged"}


@pytest.mark.parametrize("secure", [{}, {"MINIO_SECURE": ""}, {"MINIO_SECURE": " "}])
async def test_url_scheme_decides_tls_if_minio_secure_is_empty(
    secure: dict[str, str], name: str, prefect_server: PrefectServer
) -> None:
    await save_blocks({**COMPLETE, **secure, "MINIO_ENDPOINT": "http://127.0.0.1:9000"}, name=name)
    archive = await load_block(VideoArchive, name)
    assert (archive.endpoint, archive.secure) == ("127.0.0.1:9000", False)


async def test_blocks_of_different_names_have_separate_keys(name: str, prefect_server: PrefectServer) -> None:
    """Otherwise, setting up a second account would make it pay for the first one's videos."""
    other = unique("other")
    await save_blocks(COMPLETE, name=name)
    await save_blocks({**COMPLETE, "APIXO_API_KEY": "OF-THE-OTHER"}, name=other)
    assert (await load_block(ApixoApi, name)).api_key.value.get_secret_value() == API_KEY
    assert (await load_block(ApixoApi, other)).api_key.value.get_secret_value() == "OF-THE-OTHER"


async def test_default_blocks_have_the_documented_names(prefect_server: PrefectServer) -> None:
    saved = await save_blocks({**COMPLETE, "APIXO_CALLBACK_SECRET": CALLBACK_SECRET})
    assert list(outcomes(saved)) == [
        "secret/apixo-api-key",
        "secret/apixo-callback-secret",
        "apixo-api/default",
        "video-archive/default",
    ]


async def test_callback_secret_is_saved_in_its_own_block(name: str, prefect_server: PrefectServer) -> None:
    environ = {**COMPLETE, "APIXO_CALLBACK_URL": "https://callbacks.example.com/"}
    with pytest.raises(ValidationError, match="callback_url needs callback_secret"):
        await save_blocks(environ, name=name)
    saved = await save_blocks({**environ, "APIXO_CALLBACK_SECRET": CALLBACK_SECRET}, name=name)
    assert outcomes(saved)[f"secret/apixo-callback-secret-{name}"] == "created"
    api = await load_block(ApixoApi, name)
    assert api.callback_secret is not None
    assert api.callback_secret.value.get_secret_value() == CALLBACK_SECRET
    assert re.fullmatch(r"https://callbacks\.example\.com/apixo/k/[0-9a-f]{64}", api.callback_url_for("k") or "")
    assert set(outcomes(await save_blocks({}, name=name)).values()) == {"unchanged"}


async def test_callbacks_are_disabled_by_resetting_their_fields(name: str, prefect_server: PrefectServer) -> None:
    environ = {"APIXO_CALLBACK_URL": "https://c.example.com", "APIXO_CALLBACK_SECRET": "a random text of length"}
    await save_blocks({**COMPLETE, **environ}, name=name)
    unset = await save_blocks(COMPLETE, name=name, reset=["callback_url", "callback_secret"])
    assert outcomes(unset)[f"apixo-api/{name}"] == "updated"
    api = await load_block(ApixoApi, name)
    assert (api.callback_url, api.callback_secret) == (None, None)
    with pytest.raises(SetupError, match=r"No optional field is called api_key, x\. There are: allow_private_hosts, "):
        await save_blocks(COMPLETE, name=name, reset=["x", "api_key"])


async def test_key_of_digits_or_json_is_kept_verbatim(name: str, prefect_server: PrefectServer) -> None:
    for text in ("0123456", '{"käse": 1}'):
        environ = {**COMPLETE, "APIXO_API_KEY": text, "MINIO_SECRET_KEY": text}
        await save_blocks(environ, name=name)
        assert set(outcomes(await save_blocks(environ, name=name)).values()) == {"unchanged"}
        assert (await load_block(VideoArchive, name)).secret_key.get_secret_value() == text
        secret: Secret[Any] = (await load_block(ApixoApi, name)).api_key
        assert secret.value.get_secret_value() == text


@pytest.mark.parametrize("variable", COMPLETE)
async def test_missing_required_variable_is_named(variable: str, name: str, prefect: PrefectClient) -> None:
    for environ in (
        COMPLETE | {variable: "  "},
        {item: COMPLETE[item] for item in COMPLETE if item != variable},
    ):
        with pytest.raises(SetupError, match=variable) as caught:
            await save_blocks(environ, name=name)
        assert all(other not in str(caught.value) for other in COMPLETE if other != variable)
        assert "sora setup" in str(caught.value)
    assert await read_documents(prefect, name) == []


async def test_all_missing_variables_are_named_at_once(name: str, prefect_server: PrefectServer) -> None:
    with pytest.raises(SetupError) as caught:
        await save_blocks({}, name=name)
    assert all(variable in str(caught.value) for variable in COMPLETE)


async def test_setup_prompts_only_for_missing_variables(name: str, prefect_server: PrefectServer) -> None:
    requested: dict[str, tuple[str, bool]] = {}

    def ask(variable: str, description: str, secret: bool) -> str:
        requested[variable] = (description, secret)
        return f" {COMPLETE[variable]} "

    await save_blocks({"MINIO_ACCESS_KEY": "sora"}, name=name, ask=ask)
    assert {variable: secret for variable, (_, secret) in requested.items()} == {
        "APIXO_API_KEY": True,
        "MINIO_ENDPOINT": False,
        "MINIO_SECRET_KEY": True,
    }
    assert all(description.endswith(".") for description, _ in requested.values())
    assert (await load_block(ApixoApi, name)).api_key.value.get_secret_value() == API_KEY
    assert (await load_block(VideoArchive, name)).secret_key.get_secret_value() == STORE_SECRET
    requested.clear()
    await save_blocks({}, name=name, ask=ask)
    assert requested == {}


async def test_empty_answer_counts_as_missing(name: str, prefect: PrefectClient) -> None:
    with pytest.raises(SetupError, match="MINIO_ENDPOINT"):
        await save_blocks({"APIXO_API_KEY": API_KEY}, name=name, ask=lambda *_: "  ")
    assert await read_documents(prefect, name) == []


async def test_secrets_do_not_appear_in_documents_logs_or_output(
    name: str,
    prefect: PrefectClient,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    saved = await save_blocks(
        {**COMPLETE, "APIXO_CALLBACK_SECRET": CALLBACK_SECRET, "APIXO_CALLBACK_URL": "https://c.example.com"}, name=name
    )
    documents = await read_documents(prefect, name)
    assert len(documents) == 4
    texts = [document.model_dump_json() for document in documents]
    texts += [repr(saved), caplog.text, *capsys.readouterr(), repr(await load_block(ApixoApi, name))]
    texts.append(repr(await load_block(VideoArchive, name)))
    assert not [text for text in texts if "VERY-SECRET" in text]
    # The API block refers to the Secret blocks instead of holding copies.
    references = documents[0].block_document_references
    assert set(references) == {"api_key", "callback_secret"}


INVALID_VALUES = [
    ("APIXO_DEADLINE_SECONDS", "soon", "deadline_seconds", "valid number"),
    ("APIXO_PRICES", "kling-2-6: 0.5", "prices", "JSON object"),
    ("MINIO_BUCKET", "No Such", "bucket", "lowercase"),
]
"""Values of the wrong type, and one that breaks a rule of the block. The blocks' own tests cover the other rules."""


@pytest.mark.parametrize(("variable", "value", "field", "message"), INVALID_VALUES)
async def test_invalid_value_is_named_and_nothing_is_saved(
    variable: str, value: str, field: str, message: str, name: str, prefect: PrefectClient
) -> None:
    with pytest.raises(ValidationError) as caught:
        await save_blocks({**COMPLETE, variable: value}, name=name)
    (problem,) = caught.value.errors()
    assert problem["loc"] == (field,)
    assert message in problem["msg"]
    assert "SECRET" not in str(caught.value)
    assert await read_documents(prefect, name) == []


async def test_invalid_value_leaves_existing_blocks_unchanged(name: str, prefect: PrefectClient) -> None:
    await save_blocks(COMPLETE, name=name)
    kept = await read_documents(prefect, name)
    with pytest.raises(ValidationError):
        await save_blocks({"APIXO_API_KEY": "sk-NEXT-SECRET", "MINIO_BUCKET": "No Such"}, name=name)
    assert await read_documents(prefect, name) == kept
    assert (await load_block(ApixoApi, name)).api_key.value.get_secret_value() == API_KEY


async def save_from_the_ui(prefect: PrefectClient, name: str, **changed: Any) -> None:
    """Saves a block as the UI does. The UI's form checks types, but not the block's own validators."""
    document = await prefect.read_block_document_by_name(name, "apixo-api", include_secrets=True)
    references = {
        field: {"$ref": {"block_document_id": str(reference["block_document"]["id"])}}
        for field, reference in document.block_document_references.items()
    }
    await prefect.update_block_document(
        document.id,
        BlockDocumentUpdate(data={**document.data, **references, **changed}, merge_existing_data=False),
    )


async def test_invalid_block_from_ui_is_reported_without_secrets_and_repaired_by_setup(
    name: str, prefect: PrefectClient
) -> None:
    await save_blocks(COMPLETE, name=name)
    await save_from_the_ui(prefect, name, callback_url="https://callbacks.example.com")
    with pytest.raises(
        PipelineError, match=f"apixo-api block named '{name}' .*callback_url needs callback_secret"
    ) as e:
        await load_block(ApixoApi, name)
    assert "Value error" not in str(e.value)
    error: BaseException | None = e.value
    while error is not None:  # a traceback shows the causes too
        assert "SECRET" not in str(error)
        error = error.__cause__ or error.__context__
    saved = await save_blocks(COMPLETE, name=name)
    assert outcomes(saved)[f"apixo-api/{name}"] in ("created", "updated")
    assert (await load_block(ApixoApi, name)).callback_url is None


async def test_bucket_that_would_lose_the_ledger_is_rejected(archive: VideoArchive) -> None:
    for known in (True, False):
        assert (await make_bucket(archive, known=known)).outcome == "unchanged"
    expire_records(archive)
    with pytest.raises(StoreUnfitError, match="would delete the ledger: tidy"):
        await make_bucket(archive)
