"""All problems of a company's network at once: each is reported with its fix; with all fixes, a video is archived."""

from pathlib import Path

import pytest

from apixo import VideoRequest
from blocks import ApixoApi, VideoArchive
from deployments.local.store_server import ObjectStoreServer
from deployments.sandbox import SandboxServer
from flows.checks import check_setup
from flows.record.generation import State
from tests.flows.company import API, RESULTS, STORE, company_network
from tests.flows.conftest import store_blocks
from tests.support import unique


async def errors_found(name: str) -> dict[str, list[str]]:
    """The errors that `sora doctor` finds, by the name of the check."""
    found: dict[str, list[str]] = {}
    for finding in await check_setup(name, name):
        if finding.outcome == "error":
            found.setdefault(finding.name, []).append(finding.detail)
    return found


async def test_company_network_problems_are_reported_one_by_one_until_a_video_is_archived(
    minio: ObjectStoreServer,
    sandbox: SandboxServer,
    api: ApixoApi,
    archive: VideoArchive,
    prefect_server: object,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    provider = sandbox.base_url.removeprefix("http://")
    async with company_network(tmp_path, {API: provider, RESULTS: provider, STORE: minio.endpoint}) as company:
        company.compresses, company.max_bytes, company.ahead_seconds = True, 1_000_000, 90
        stored = await store_blocks(
            api.model_copy(update={"base_url": f"https://{API}", "allow_private_hosts": False}),
            archive.model_copy(update={"endpoint": STORE, "secure": True}),
        )

        found = await errors_found(stored.name)
        assert set(found) == {"archive", "api", "result route"}
        assert [words for words in found.values() if "HTTPS_PROXY" not in words[0]] == []

        monkeypatch.setenv("HTTPS_PROXY", company.proxy)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")  # Prefect's event client uses the proxy even for this machine
        found = await errors_found(stored.name)
        assert set(found) == {"archive", "api", "result route"}
        assert [words for words in found.values() if "SSL_CERT_FILE" not in words[0]] == []
        assert company.requests == []

        monkeypatch.setenv("SSL_CERT_FILE", str(company.authority))
        found = await errors_found(stored.name)
        assert set(found) == {"archive"}
        assert "compresses" in found["archive"][0]
        assert "turn that off for the store" in found["archive"][0]

        company.compresses = False
        found = await errors_found(stored.name)
        (clock,), (limit,) = found["clock"], found["archive"]
        assert "behind the object store's" in clock
        assert "Set the clock" in clock
        assert "client_max_body_size" in limit

        company.ahead_seconds, company.max_bytes = 0, 64_000_000
        assert await errors_found(stored.name) == {}
        assert sandbox.record.submits() == []

        made = await stored.generate(VideoRequest(prompt="A red kite over dunes"), key=unique("company"))
        assert made.state is State.ARCHIVED
        assert len(sandbox.record.charged()) == 1
        assert company.tunneled == {API, RESULTS, STORE}
        assert any(request.startswith(f"{RESULTS} GET /results/") for request in company.requests)
