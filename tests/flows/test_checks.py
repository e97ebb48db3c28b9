"""The checks before a video is paid for, and the fix that each of them suggests."""

import re
from contextlib import aclosing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

import flows.checks
from apixo.constants import BASE_URL
from blocks import ApixoApi, VideoArchive
from blocks.object_store import ObjectStore
from blocks.prices import Price
from blocks.store_errors import StoreUnfitError
from deployments.sandbox import SandboxServer
from flows.check_setup import ARTIFACT_KEY, SetupCheckError, check_setup
from flows.checks import Finding, check_before_paying, check_prices, check_result_route, check_space, this_code
from flows.media.guarded_client import guarded_client
from flows.resources import Resources
from tests.apixo.wire import closed_port, http, reply, serving
from tests.flows.conftest import StoredBlocks, store_blocks
from tests.support import expire_records
from tests.support.authority import make_authority, server_context
from tests.support.receiver import post, receiving


def by_name(findings: list[Finding]) -> dict[str, tuple[str, str]]:
    return {finding.name: (finding.outcome, finding.detail) for finding in findings}


async def test_valid_setup_passes_every_check_and_pays_nothing(stored: StoredBlocks, sandbox: SandboxServer) -> None:
    found = by_name(await check_setup(stored.name, stored.name))
    assert {outcome for outcome, _ in found.values()} == {"ok"}
    assert list(found) == [
        "code", f"block apixo-api/{stored.name}", f"block video-archive/{stored.name}", "archive", "clock", "api",
        "result route", "balance", "image route", "callbacks", "disk",
    ]  # fmt: skip
    assert found["code"][1] == this_code()
    assert found["clock"][1] == "within 1 s of the object store's"
    assert found["callbacks"][1] == "none: the apixo-api block has no callback_url, so runs poll"
    assert sandbox.record.submits() == []
    async with get_client() as client:
        (artifact,) = await client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[ARTIFACT_KEY])), limit=1
        )
    assert artifact.type == "table"


SETUP_ERRORS: list[tuple[str, dict[str, Any], dict[str, Any], str, str]] = [
    ("invalid API key", {"api_key": Secret(value="nobody")}, {}, "api", "API key"),
    ("API is down", {"base_url": f"http://127.0.0.1:{closed_port()}"}, {}, "api", "No connection"),
    ("no bucket", {}, {"bucket": "never-made"}, "archive", "There is no bucket never-made. Create it with"),
    ("invalid access key", {}, {"access_key": "nobody"}, "archive", "does not know the access key"),
    ("store is down", {}, {"endpoint": f"127.0.0.1:{closed_port()}"}, "archive", "Is it up"),
    ("TLS to a store without TLS", {}, {"secure": True}, "archive", "object store"),
    ("no route to results", {"result_check_url": f"http://127.0.0.1:{closed_port()}/probe"}, {}, "result route",
     "So would a finished video"),
]  # fmt: skip


@pytest.mark.parametrize(("api_fields", "archive_fields", "name", "expected_text"), [row[1:] for row in SETUP_ERRORS],
                         ids=[row[0] for row in SETUP_ERRORS])  # fmt: skip
async def test_each_setup_error_is_reported_with_its_fix(
    api: ApixoApi,
    archive: VideoArchive,
    prefect_server: object,
    api_fields: dict[str, Any],
    archive_fields: dict[str, Any],
    name: str,
    expected_text: str,
) -> None:
    stored = await store_blocks(api.model_copy(update=api_fields), archive.model_copy(update=archive_fields))
    found = by_name(await flows.checks.check_setup(stored.name, stored.name))
    assert found[name][0] == "error"
    assert expected_text in found[name][1]
    others = {other for other, (outcome, _) in found.items() if outcome == "error"} - {name}
    assert others <= ({"result route"} if "base_url" in api_fields else set())
    if expected_text == SETUP_ERRORS[0][4]:  # the flow reports each of them in the same way
        with pytest.raises(SetupCheckError, match=re.escape(expected_text)):
            await check_setup(stored.name, stored.name)


@pytest.mark.parametrize(
    ("model", "meant"), [("sora2", "sora-2"), ("Kling-2-6", "kling-2-6"), ("sora-2", None), ("our-own-model", None)]
)
async def test_price_for_a_probably_misspelled_model_is_a_warning(
    api: ApixoApi, archive: VideoArchive, prefect_server: object, model: str, meant: str | None
) -> None:
    priced = api.model_copy(update={"prices": {model: Price(per_video=Decimal(1))}})
    expected_text = f"prices names {model!r}, which is not in the catalog; did you mean {meant}?"
    wanted = [Finding(name="prices", outcome="warning", detail=expected_text)] if meant else []
    assert check_prices(priced) == wanted
    if model == "sora2":
        stored = await store_blocks(priced, archive)
        assert wanted[0] in await flows.checks.check_setup(stored.name, stored.name)


async def test_missing_blocks_are_reported(prefect_server: object) -> None:
    found = by_name(await flows.checks.check_setup("nowhere", "nowhere"))
    assert list(found) == ["code", "block apixo-api/nowhere", "block video-archive/nowhere", "disk"]
    assert "sora setup" in found["block apixo-api/nowhere"][1]


@pytest.mark.parametrize(
    ("answer", "expected_text"),
    [
        (http(405), "a different callback secret"),
        (http(405, **{"Sora-Blocks": "0" * 64}), "a different API key, API URL or bucket"),
        (http(404), "answers 404"),
        (http(502), "answers 502"),
        (None, "Is `sora callbacks` running"),
    ],
)
async def test_callback_url_without_a_receiver_for_these_blocks_is_a_warning(
    api: ApixoApi, archive: VideoArchive, prefect_server: object, answer: bytes | None, expected_text: str
) -> None:
    async with serving(reply(answer or b"")) as receiver:
        url = receiver.url if answer else f"http://127.0.0.1:{closed_port()}"
        secret: Any = Secret(value="a-secret-of-enough-length")
        stored = await store_blocks(api.model_copy(update={"callback_url": url, "callback_secret": secret}), archive)
        found = by_name(await flows.checks.check_setup(stored.name, stored.name))
    assert found["callbacks"][0] == "warning"
    assert expected_text in found["callbacks"][1]


async def test_callback_url_with_an_untrusted_certificate_is_a_warning(
    api: ApixoApi, archive: VideoArchive, prefect_server: object, tmp_path: Path
) -> None:
    secret: Any = Secret(value="a-secret-of-enough-length")
    async with serving(
        reply(http(405)), tls=server_context(make_authority(tmp_path, "callbacks.example.com"))
    ) as receiver:
        changed = {"callback_url": receiver.url, "callback_secret": secret}
        stored = await store_blocks(api.model_copy(update=changed), archive)
        found = by_name(await flows.checks.check_setup(stored.name, stored.name))
    assert receiver.url.startswith("https:")
    assert found["callbacks"][0] == "warning"
    assert "certificate" in found["callbacks"][1]
    assert receiver.requests == []


async def test_receiver_proves_its_blocks_only_to_a_caller_with_the_same_blocks(
    api: ApixoApi, archive: VideoArchive, sandbox: SandboxServer, prefect_server: object
) -> None:
    async with receiving(api, archive) as receiver:
        same = await store_blocks(receiver.api, archive)
        assert by_name(await flows.checks.check_setup(same.name, same.name))["callbacks"][0] == "ok"
        other = await store_blocks(receiver.api.model_copy(update={"api_key": Secret(value="another")}), archive)
        reported = by_name(await flows.checks.check_setup(other.name, other.name))["callbacks"]
        assert reported[0] == "warning"
        assert "a different API key" in reported[1]
        answer = await receiver.send(post(f"/apixo/check/0/{'0' * 64}", method="GET"))
        assert (answer.status, answer.headers.get("sora-blocks")) == (405, None)
        callback_reply = await receiver.send(post(receiver.path("check", 0), b"{}"))
        assert callback_reply.status == 404


async def test_wrong_clock_is_a_separate_finding(stored: StoredBlocks, monkeypatch: pytest.MonkeyPatch) -> None:
    async def offset(store: ObjectStore) -> float | None:
        return 90.0

    monkeypatch.setattr(ObjectStore, "clock_offset_seconds", offset)
    found = by_name(await flows.checks.check_setup(stored.name, stored.name))
    assert found["clock"][0] == "error"
    assert "clock is 90 s behind" in found["clock"][1]
    assert "archive" not in found


async def test_images_in_the_archive_need_a_url_that_the_provider_can_reach(
    stored: StoredBlocks, archive: VideoArchive
) -> None:
    """Their URL is signed, so no finding shows it."""
    for public, expected_text in (
        (f"http://127.0.0.1:{closed_port()}", "Check public_url in the video-archive block"),
        ("http://169.254.169.254", "Set public_url in the video-archive block"),
    ):
        block = archive.model_copy(update={"public_url": public})
        await block.save(stored.name, overwrite=True)
        outcome, detail = by_name(await flows.checks.check_setup(stored.name, stored.name))["image route"]
        assert outcome == "warning"
        assert expected_text in detail
        assert "Only images given as files or s3:// need it" in detail
        assert "X-Amz" not in detail


async def test_earlier_result_hosts_are_checked_only_for_the_real_api(api: ApixoApi) -> None:
    """Otherwise, a firewall that allows only the API would be noticed after paying."""
    hosts = ["nowhere.invalid"]
    async with serving(reply(http(200))) as elsewhere, guarded_client(allow_private_hosts=True) as web:
        real = api.model_copy(update={"base_url": BASE_URL, "result_check_url": elsewhere.url})
        found = by_name(await check_result_route(web, real, hosts=hosts))
        assert found["result route"] == ("ok", "127.0.0.1 answers")
        assert found["result host nowhere.invalid"][0] == "warning"
        assert "firewall" in found["result host nowhere.invalid"][1]
        assert len(await check_result_route(web, api, hosts=hosts)) == 1


async def test_result_route_is_a_warning_for_a_private_api(api: ApixoApi) -> None:
    async with guarded_client(allow_private_hosts=False) as web:
        (found,) = await check_result_route(web, api)
    assert found.outcome == "warning"
    assert "result_check_url" in found.detail


async def test_dry_run_reports_an_unchecked_result_route(api: ApixoApi, archive: VideoArchive) -> None:
    async with Resources(api.model_copy(update={"allow_private_hosts": False}), archive) as resources:
        found = by_name(await check_before_paying(resources))
    assert found["result route"][0] == "warning"
    assert "result_check_url" in found["result route"][1]


async def test_dry_run_rejects_a_store_that_would_lose_the_ledger(api: ApixoApi, archive: VideoArchive) -> None:
    expire_records(archive)
    async with aclosing(Resources(api, archive)) as resources:
        with pytest.raises(StoreUnfitError, match="would delete the ledger: tidy"):
            await check_before_paying(resources)


async def test_api_key_is_not_sent_to_result_hosts(api: ApixoApi) -> None:
    async with serving(reply(http(200))) as elsewhere, guarded_client(allow_private_hosts=True) as web:
        await check_result_route(web, api.model_copy(update={"result_check_url": f"{elsewhere.url}/probe.bin"}))
    (request,) = elsewhere.requests
    assert request.header("authorization") is None


def test_full_disk_is_an_error(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_space(tmp_path / "not" / "there" / "yet").outcome == "ok"
    monkeypatch.setattr(flows.checks, "FREE_BYTES", 10**18)
    found = check_space(tmp_path)
    assert (found.outcome, "SORA_WORK_DIR" in found.detail) == ("error", True)
