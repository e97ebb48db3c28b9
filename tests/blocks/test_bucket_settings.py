"""Buckets with settings of their own, and stores in another region: what is rejected, what works, what is reported."""

import base64
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from minio import Minio, MinioAdmin
from minio.commonconfig import COMPLIANCE, ENABLED, Filter
from minio.credentials.providers import StaticProvider
from minio.error import S3Error
from minio.lifecycleconfig import Expiration, LifecycleConfig, NoncurrentVersionExpiration, Rule
from minio.objectlockconfig import DAYS, ObjectLockConfig
from minio.sseconfig import Rule as EncryptionRule
from minio.sseconfig import SSEConfig
from minio.versioningconfig import VersioningConfig
from pydantic import SecretStr

import deployments.local.store_server
from blocks import VideoArchive
from blocks.bucket_settings import BucketSettings, parse_retention, parse_rules
from blocks.object_store import PROBE, ObjectStore
from blocks.probe import problems
from blocks.store_errors import PreconditionFailedError, StoreRefusedError, StoreUnfitError
from deployments.local.store_server import ObjectStoreServer, start_object_store
from tests.support import CREDENTIALS, minio_client

from .conftest import OpenStore, archive
from .wire import FakeStore, always, http, listening, s3_error


@pytest.fixture
def admin_client(minio_archive: VideoArchive) -> Iterator[Minio]:
    """A client that may change the bucket's settings."""
    client = minio_client(minio_archive)
    yield client
    client._http.clear()


def expires(prefix: str, *, rule_id: str = "tidy") -> Rule:
    return Rule(ENABLED, rule_filter=Filter(prefix=prefix), rule_id=rule_id, expiration=Expiration(days=30))


async def test_lifecycle_rule_that_deletes_from_the_ledger_is_rejected(
    minio_store: ObjectStore, admin_client: Minio
) -> None:
    rules = [expires("incoming/", rule_id="ok"), expires("requests/ab")]
    admin_client.set_bucket_lifecycle(minio_store.bucket, LifecycleConfig(rules))
    (error,) = await problems(minio_store)
    assert isinstance(error, StoreUnfitError)
    assert re.search(r"lifecycle rule.*tidy \(deletes .*again.*Limit the rule.*budget/", str(error))


async def test_other_lifecycle_rules_are_accepted_and_those_on_videos_noted(
    minio_store: ObjectStore, admin_client: Minio
) -> None:
    rules = [
        expires("incoming/"),
        expires("videos/2026", rule_id="videos"),
        Rule(
            ENABLED,
            rule_filter=Filter(prefix="ledger/"),
            rule_id="versions",
            noncurrent_version_expiration=NoncurrentVersionExpiration(noncurrent_days=7),
        ),
    ]
    admin_client.set_bucket_lifecycle(minio_store.bucket, LifecycleConfig(rules))
    assert await problems(minio_store) == []
    assert (await minio_store.settings()).notes() == ["lifecycle rule videos (deletes videos/2026*)"]


DAY = "<Expiration><Days>1</Days></Expiration>"
RULES: list[tuple[str, list[str]]] = [
    (f"<ID>a</ID><Status>Enabled</Status><Prefix>open/</Prefix>{DAY}", ["a (deletes open/*)"]),
    (
        "<ID>a</ID><Status>Enabled</Status><Filter/><Expiration><Date>2027-01-01</Date></Expiration>",
        ["a (deletes everything)"],
    ),
    (
        f"<Status>Enabled</Status><Filter><And><Prefix>l</Prefix><MinSize>1</MinSize></And></Filter>{DAY}",
        ["without a name (deletes l*)"],
    ),
    (
        "<ID>a</ID><Status>Enabled</Status><Filter/><Transition><StorageClass>GLACIER</StorageClass></Transition>",
        ["a (moves to GLACIER everything)"],
    ),
    ("<Status>Enabled</Status><Filter/><Transition><StorageClass>STANDARD_IA</StorageClass></Transition>", []),
    (f"<Status>Disabled</Status><Filter/>{DAY}", []),
    (f"<Status>Enabled</Status><Filter><Tag><Key>k</Key><Value>v</Value></Tag></Filter>{DAY}", []),
    (
        "<Status>Enabled</Status><Filter/><Expiration><Marker>true</Marker></Expiration>",
        [],
    ),
]


@pytest.mark.parametrize(("rule", "descriptions"), RULES)
@pytest.mark.parametrize("namespace", ["", ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'])
def test_parse_lifecycle_rule(rule: str, descriptions: list[str], namespace: str) -> None:
    document = f"<LifecycleConfiguration{namespace}><Rule>{rule}</Rule></LifecycleConfiguration>"
    assert [str(found) for found in parse_rules(document)] == descriptions


@pytest.mark.parametrize("prefix", ["", "ledger/", "open/", "o", "tasks/", "requests/ab", "budget/2026", "videos/"])
def test_rule_that_deletes_any_part_of_the_ledger_is_against_it(prefix: str) -> None:
    rule = f"<ID>a</ID><Status>Enabled</Status><Filter><Prefix>{prefix}</Prefix></Filter>{DAY}"
    rules = parse_rules(f"<LifecycleConfiguration><Rule>{rule}</Rule></LifecycleConfiguration>")
    assert BucketSettings(rules).against_the_ledger() == [rule for rule in rules if prefix != "videos/"]
    assert len(rules) == 1


async def test_unreadable_or_unsupported_settings_are_not_an_error(open_store: OpenStore) -> None:
    for answer in (s3_error(403, "AccessDenied"), s3_error(501, "NotImplemented"), http(200, b"<h1>hello"), http(200)):
        async with listening(FakeStore(always(answer)).handle) as endpoint:
            store = open_store(archive(endpoint))
            settings = await store.settings()
            assert (settings.against_the_ledger(), settings.notes(), settings.stale_release) == ([], [], "")


async def test_versioned_bucket_works_and_is_noted(minio_store: ObjectStore, admin_client: Minio) -> None:
    admin_client.set_bucket_versioning(minio_store.bucket, VersioningConfig(ENABLED))
    assert await problems(minio_store) == []
    assert "versioned" in (await minio_store.settings()).notes()[0]
    first = await minio_store.put_if("open/a", b"1", etag=None)
    await minio_store.remove("open/a")
    assert await minio_store.get("open/a") is None
    with pytest.raises(PreconditionFailedError):  # a delete marker is not a version that can be changed
        await minio_store.put_if("open/a", b"2", etag=first)
    await minio_store.put_if("open/a", b"3", etag=None)
    assert await minio_store.names("open/") == ["open/a"]


async def test_bucket_with_object_lock_and_retention_works_and_is_noted(
    minio_archive: VideoArchive, admin_client: Minio, open_store: OpenStore
) -> None:
    admin_client.make_bucket(minio_archive.bucket, object_lock=True)
    admin_client.set_object_lock_config(minio_archive.bucket, ObjectLockConfig(COMPLIANCE, 1, DAYS))
    store = open_store(minio_archive)
    assert await problems(store) == []
    assert (await store.settings()).notes()[0] == "retention COMPLIANCE for 1 days: no version can be deleted earlier"


def test_parse_retention() -> None:
    assert parse_retention("<ObjectLockConfiguration/>") == ""
    years = "<Rule><DefaultRetention><Mode>GOVERNANCE</Mode><Years>2</Years></DefaultRetention></Rule>"
    assert parse_retention(f"<ObjectLockConfiguration>{years}</ObjectLockConfiguration>") == ("GOVERNANCE for 2 years")


@pytest.fixture(scope="module")
def encrypting_minio_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStoreServer]:
    """A MinIO server in another region, with encryption configured."""
    folder = tmp_path_factory.mktemp("own-special-minio")
    key = base64.b64encode(os.urandom(32)).decode()
    with pytest.MonkeyPatch.context() as patch:
        plain = deployments.local.store_server._minio_environment
        patch.setattr(
            deployments.local.store_server,
            "_minio_environment",
            lambda *given: plain(*given) | {"MINIO_REGION": "eu-central-1", "MINIO_KMS_SECRET_KEY": f"k:{key}"},
        )
        patch.setenv("SORA_OBJECT_STORE", "minio")
        server = start_object_store(
            local_dir=Path(__file__).parents[2] / ".local",
            data_dir=folder / "data",
            log_dir=folder,
            credentials=CREDENTIALS,
        )
    with server.process:  # outside the patches, because another store may be started meanwhile
        _wait_for(server.endpoint)  # `ready` would use the default region
        yield server


def _wait_for(endpoint: str) -> None:
    """Waits until MinIO has loaded its settings. Before, it reports that it is healthy, but accepts any region."""
    client = minio_client(archive(endpoint, region="us-west-2"))
    deadline = time.monotonic() + 60
    while True:
        try:
            list(client.list_objects("never-made"))
        except S3Error as error:
            if error.code == "AuthorizationHeaderMalformed":
                break
        except urllib3.exceptions.HTTPError:
            pass  # it does not listen yet
        assert time.monotonic() < deadline
        time.sleep(0.1)
    client._http.clear()


async def test_bucket_with_default_encryption_works(
    encrypting_minio_server: ObjectStoreServer, open_store: OpenStore
) -> None:
    """Then an etag is not the MD5 of the content, and no two writes of the same bytes have the same etag."""
    block = archive(encrypting_minio_server.endpoint, region="eu-central-1")
    client = minio_client(block)
    client.make_bucket(block.bucket)
    client.set_bucket_encryption(block.bucket, SSEConfig(EncryptionRule.new_sse_s3_rule()))
    client._http.clear()
    store = open_store(block)
    assert await problems(store) == []
    first = await store.put_if("ledger/a.json", b"1", etag=None)
    assert await store.put_if("ledger/a.json", b"2", etag=first) != first
    assert await store.names("") == ["ledger/a.json", PROBE, "probe/race"]


async def test_wrong_region_error_names_the_right_region(
    encrypting_minio_server: ObjectStoreServer, open_store: OpenStore
) -> None:
    store = open_store(archive(encrypting_minio_server.endpoint, region="us-west-2"))
    for call in (store.create_bucket(), store.get("a"), store.put_if("a", b"", etag=None)):
        with pytest.raises(StoreRefusedError, match=r"eu-central-1.*Set region to eu-central-1") as raised:
            await call
        assert raised.value.code == "WrongRegion"


async def test_error_in_the_right_region_is_about_keys_or_permissions(
    encrypting_minio_server: ObjectStoreServer, open_store: OpenStore
) -> None:
    """MinIO names its region in every error if one is configured."""
    block = archive(encrypting_minio_server.endpoint, region="eu-central-1")
    await open_store(block).create_bucket()
    MinioAdmin(
        endpoint=encrypting_minio_server.endpoint,
        credentials=StaticProvider(encrypting_minio_server.access_key, encrypting_minio_server.secret_key),
        region="eu-central-1",
        secure=False,
    ).add_service_account(
        access_key="reader0001",
        secret_key="reader-51gned",
        policy={
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": ["arn:aws:s3:::*"]}],
        },
    )
    reader = {"access_key": "reader0001", "secret_key": SecretStr("reader-51gned")}
    for changed, code in (
        ({"secret_key": SecretStr("wrong-51gned-secret")}, "SignatureDoesNotMatch"),
        ({"access_key": "nobody"}, "InvalidAccessKeyId"),
        (reader, "AccessDenied"),
    ):
        store = open_store(block.model_copy(update=changed))
        for call in (store.put_if("a", b"", etag=None), store.remove("a"), store.names("")):
            with pytest.raises(StoreRefusedError) as raised:
                await call
            assert (type(raised.value), raised.value.code) == (StoreRefusedError, code)


async def test_region_of_a_redirect_is_looked_up_without_credentials(open_store: OpenStore) -> None:
    """AWS returns a bucket's region to anyone, in a header that obstore does not expose."""
    fake = FakeStore(always(http(301, b"", **{"x-amz-bucket-region": "eu-west-3"})))
    async with listening(fake.handle) as endpoint:
        with pytest.raises(StoreRefusedError, match=r"Set region to eu-west-3.*s3\.eu-west-3\.amazonaws\.com"):
            await open_store(archive(endpoint)).get("a")
    lookup = next(head for head in fake.heads if head.startswith("HEAD"))
    assert "authorization" not in lookup.lower()


RELEASES: list[tuple[str, int, str]] = [
    ("2025-09-07T16:13:09Z", 4, "2025-09-07T16:13:09Z"),
    ("2025-10-15T17:29:55Z", 4, "2025-10-15T17:29:55Z"),
    ("2025-10-15T17:29:55Z", 1, ""),
    ("2026-02-12T20:18:48Z", 4, ""),
    ("DEVELOPMENT.GOGET", 4, ""),
]


@pytest.mark.parametrize(("release", "drives", "found"), RELEASES)
async def test_minio_release_that_ignores_conditions_without_quorum_is_named(
    open_store: OpenStore, release: str, drives: int, found: str
) -> None:
    disks = ",".join(["{}"] * drives)
    info = f'{{"servers": [{{"version": "{release}", "drives": [{disks}]}}]}}'.encode()
    for server, expected in (("MinIO", found), ("AmazonS3", "")):
        fake = FakeStore(always(http(200, info, server=server)))
        async with listening(fake.handle) as endpoint:
            assert (await open_store(archive(endpoint)).settings()).stale_release == expected
        assert any("/minio/" in head for head in fake.heads) is (server == "MinIO")


async def test_real_minio_with_one_drive_is_not_stale(minio_store: ObjectStore) -> None:
    assert (await minio_store.settings()).stale_release == ""
