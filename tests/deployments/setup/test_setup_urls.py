"""Setup detects a store's URL style, region and endpoint from the store's error responses, and saves them."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from blocks import ApixoApi, VideoArchive
from deployments.connection import SetupError
from deployments.local.prefect_server import PrefectServer
from deployments.sandbox import SandboxServer
from deployments.setup.blocks import Saved, check_blocks, save_blocks
from flows.resources import load_block
from tests.blocks.wire import ConnectProxy, FakeStore, always, http, listening, s3_error
from tests.support import unique
from tests.support.authority import make_authority, server_context

HOST = "oss.example.com"
REGION = "eu-central-1"


async def virtual_hosted_store(head: str, writer: asyncio.StreamWriter) -> None:
    """A store that accepts only virtual-hosted buckets, and only signatures for its own region."""
    host = re.search(r"^host: *(\S+)", head, re.IGNORECASE | re.MULTILINE)
    if host is None or host[1].startswith(HOST):
        writer.write(s3_error(403, "SecondLevelDomainForbidden"))
    elif f"/{REGION}/s3/aws4_request" not in head:
        body = f"<Error><Code>AuthorizationHeaderMalformed</Code><Region>{REGION}</Region></Error>".encode()
        writer.write(http(400, body, **{"content-type": "application/xml"}))
    else:
        writer.write(http(200, b"-", etag='"1"', **{"last-modified": "Sun, 01 Mar 2026 12:00:00 GMT"}))


async def aws_store(head: str, writer: asyncio.StreamWriter) -> None:
    """AWS S3, which serves path-style requests only at the endpoint of the bucket's own region."""
    if f"host: s3.{REGION}.amazonaws.com" in head.lower():
        writer.write(http(200, b"-", etag='"1"', **{"last-modified": "Sun, 01 Mar 2026 12:00:00 GMT"}))
    elif head.startswith("HEAD"):
        writer.write(http(301, b"", **{"x-amz-bucket-region": REGION}))
    else:
        writer.write(http(301, b"<Error><Code>PermanentRedirect</Code></Error>"))


def make_block(**changed: Any) -> VideoArchive:
    fields: dict[str, Any] = {"access_key": "sora", "secret_key": SecretStr("a-secret"), "bucket": "videos"}
    return VideoArchive(**(fields | changed))


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_authority(tmp_path, HOST, "amazonaws.com", "eu-central-1.amazonaws.com")
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "ca.pem"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")  # otherwise, Prefect would send its events through the proxy
    return folder


async def test_url_style_and_region_are_detected_from_error_responses(
    sandbox: SandboxServer, authority: Path, prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, fake_store = unique("addressed"), FakeStore(virtual_hosted_store)
    async with listening(fake_store.handle, server_context(authority)) as store:
        proxy = ConnectProxy(store)
        async with listening(proxy.handle) as endpoint:
            monkeypatch.setenv("HTTPS_PROXY", f"http://{endpoint}")
            environ = {
                "APIXO_API_KEY": sandbox.settings.api_key,
                "APIXO_BASE_URL": sandbox.base_url,
                "MINIO_ENDPOINT": f"{HOST}:9000",
                "MINIO_ACCESS_KEY": "sora",
                "MINIO_SECRET_KEY": "a-secret",
                "MINIO_BUCKET": "videos",
            }
            saved = await save_blocks(environ, name=name, check=True)
            second_run = await save_blocks(environ, name=name, check=True)
    assert [item for item in saved if item.outcome == "found"] == [
        Saved("region", REGION, "found"),
        Saved("virtual_host", "True", "found"),
    ]
    assert {item.outcome for item in second_run} == {"unchanged"}
    loaded = await load_block(VideoArchive, name)
    assert (loaded.endpoint, loaded.region, loaded.virtual_host) == (f"{HOST}:9000", REGION, True)
    assert {head.split(" ", 2)[1] for head in proxy.heads} == {f"{HOST}:9000", f"videos.{HOST}:9000"}


async def test_aws_endpoint_is_changed_to_the_buckets_region(
    api: ApixoApi, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AWS redirects without a location, but its answer to an unsigned HEAD request names the region."""
    async with (
        listening(FakeStore(aws_store).handle, server_context(authority)) as store,
        listening(ConnectProxy(store).handle) as endpoint,
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"http://{endpoint}")
        resolved = await check_blocks(api, make_block(endpoint="s3.amazonaws.com"))
    assert (resolved.endpoint, resolved.region, resolved.virtual_host) == (f"s3.{REGION}.amazonaws.com", REGION, False)


async def test_store_that_repeats_the_same_demand_forever_is_an_error(api: ApixoApi) -> None:
    fake_store = FakeStore(always(s3_error(403, "PathStyleDomainForbidden")))
    async with listening(fake_store.handle) as endpoint:
        archive = make_block(endpoint=endpoint.replace("127.0.0.1", "localhost"), secure=False)
        with pytest.raises(SetupError, match=r"Nothing was saved"):
            await check_blocks(api, archive)
