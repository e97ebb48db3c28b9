"""Each store that can be started here, as a company would run it: with TLS from a private authority, in another region,
with the bucket in front of the host, and with various bucket settings.

Each setting has to pass all checks of `sora doctor`, which include the race, and the ledger's model.
"""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import httpx
import pytest
from minio import Minio
from minio.commonconfig import COMPLIANCE, ENABLED, Filter
from minio.error import S3Error
from minio.lifecycleconfig import Expiration, LifecycleConfig, Rule
from minio.objectlockconfig import DAYS, ObjectLockConfig
from minio.sseconfig import Rule as EncryptionRule
from minio.sseconfig import SSEConfig
from minio.versioningconfig import VersioningConfig

from apixo.network import trust
from blocks import VideoArchive
from blocks.probe import problems
from blocks.store_errors import StoreUnfitError, WrongAddressError
from tests.attack.model.simulation import MakeBucket, plain_bucket
from tests.attack.model.state_machine import explore, open_harness
from tests.blocks.wire import ConnectProxy, listening
from tests.support import minio_client
from tests.support.authority import make_authority

from .servers import DOMAIN, KINDS, REGION, RunningStore, running

pytestmark = pytest.mark.stores


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_authority(tmp_path_factory.mktemp("authority"), DOMAIN)


@pytest.fixture(autouse=True)
def _trust_authority(authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority / "ca.pem"))


@pytest.fixture(params=KINDS)
def company(
    request: pytest.FixtureRequest, authority: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningStore]:
    """A store as a company would run it. Each test gets its own: SeaweedFS has room for a few dozen buckets only."""
    with running(request.param, tmp_path_factory.mktemp(request.param), authority) as store:
        yield store


def with_versions(client: Minio, bucket: str) -> None:
    client.make_bucket(bucket)
    client.set_bucket_versioning(bucket, VersioningConfig(ENABLED))


def with_object_lock(client: Minio, bucket: str) -> None:
    client.make_bucket(bucket, object_lock=True)
    client.set_object_lock_config(bucket, ObjectLockConfig(COMPLIANCE, 1, DAYS))


def with_encryption(client: Minio, bucket: str) -> None:
    client.make_bucket(bucket)
    client.set_bucket_encryption(bucket, SSEConfig(EncryptionRule.new_sse_s3_rule()))


SETTINGS: list[tuple[str, MakeBucket]] = [
    ("TLS with a private authority, another region", plain_bucket),
    ("a versioned bucket", with_versions),
    ("object lock with a default retention", with_object_lock),
    ("default encryption", with_encryption),
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "make_bucket"), SETTINGS, ids=[name for name, _ in SETTINGS])
def test_ledger_works_with_each_bucket_setting(
    company: RunningStore, tmp_path: Path, name: str, make_bucket: MakeBucket
) -> None:
    archive = company.archive()
    create_bucket(company, archive, make_bucket)
    check_ledger(company, archive, tmp_path, name, make_bucket)


@pytest.mark.timeout(900)
def test_ledger_works_with_the_bucket_in_front_of_the_host(
    company: RunningStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tunnel(company.endpoint) as (proxy, endpoint):  # DNS has no names below the domain
        monkeypatch.setenv("HTTPS_PROXY", f"http://{endpoint}")
        archive = company.archive(endpoint=f"{DOMAIN}:9000", virtual_host=True)
        create_bucket(company, company.archive(bucket=archive.bucket), plain_bucket)
        check_ledger(company, archive, tmp_path, "the bucket in front of the host", lambda _, name: create_bucket(
            company, company.archive(bucket=name), plain_bucket
        ))  # fmt: skip
        store = archive.store()
        url = store.signed_url("probe/race", seconds=60)
        with httpx.Client(proxy=f"http://{endpoint}", verify=trust()) as browser:
            assert browser.get(url).status_code == 200
        asyncio.run(store.aclose())
    assert url.startswith(f"https://{archive.bucket}.{DOMAIN}:9000/probe/race?")
    hosts = {head.split(" ", 2)[1] for head in proxy.heads}
    assert f"{archive.bucket}.{DOMAIN}:9000" in hosts
    assert f"{DOMAIN}:9000" not in hosts


@pytest.mark.parametrize("prefix", ["open/", "ledger/"])
def test_lifecycle_rule_on_the_ledger_is_rejected(company: RunningStore, prefix: str) -> None:
    archive = company.archive()
    rule = Rule(ENABLED, rule_filter=Filter(prefix=prefix), rule_id="tidy", expiration=Expiration(days=30))
    create_bucket(company, archive, plain_bucket)
    create_bucket(company, archive, lambda client, name: client.set_bucket_lifecycle(name, LifecycleConfig([rule])))
    found = doctor_problems(archive)
    assert [type(problem) for problem in found] == [StoreUnfitError]
    assert f"tidy (deletes {prefix}*)" in str(found[0])
    company.report(f"a lifecycle rule on {prefix}: rejected")


def test_wrong_region_error_names_the_right_region(company: RunningStore) -> None:
    archive = company.archive()
    create_bucket(company, archive, plain_bucket)
    found = doctor_problems(archive.model_copy(update={"region": "us-west-2"}))
    if company.kind == "SeaweedFS":
        assert found == []
        return company.report("accepts requests that are signed for any region")
    assert isinstance(found[0], WrongAddressError)
    assert found[0].region == REGION
    return company.report(f"a wrong region: answered with {REGION}")


def check_ledger(
    company: RunningStore, archive: VideoArchive, work_root: Path, name: str, make_bucket: MakeBucket
) -> None:
    """Runs all checks of `sora doctor`, and the ledger's model."""
    began = time.monotonic()
    assert [str(problem) for problem in doctor_problems(archive)] == []
    checked = time.monotonic() - began
    with open_harness(archive, work_root, make_bucket) as harness:
        explore(harness, examples=1, steps=20, derandomize=True)
    seconds = time.monotonic() - began - checked
    company.report(f"{name}: checked in {checked:.1f} s, the ledger's model in {seconds:.0f} s")


def doctor_problems(archive: VideoArchive) -> list[Exception]:
    async def collect() -> list[Exception]:
        async with aclosing(archive.store()) as store:
            return list(await problems(store))

    return asyncio.run(collect())


def create_bucket(company: RunningStore, archive: VideoArchive, make_bucket: MakeBucket) -> None:
    """Creates or configures the archive's bucket. Skips the test if the store does not support the setting."""
    try:
        client = minio_client(archive)
        make_bucket(client, archive.bucket)
        client._http.clear()
    except S3Error as error:
        if error.code not in ("NotImplemented", "MethodNotAllowed"):
            raise
        company.report(f"does not support this setting: {error.code}")
        pytest.skip("the store does not support this setting")


@contextmanager
def tunnel(endpoint: str) -> Iterator[tuple[ConnectProxy, str]]:
    """A proxy to one endpoint, on its own thread, because several event loops call the store."""
    loop, proxy = asyncio.new_event_loop(), ConnectProxy(endpoint)
    started, ended = threading.Event(), asyncio.Event()
    address: list[str] = []

    async def serve() -> None:
        async with listening(proxy.handle) as bound:
            address.append(bound)
            started.set()
            await ended.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert started.wait(10)
        yield proxy, address[0]
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)
        loop.close()
