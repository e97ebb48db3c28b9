"""A bucket with rules of its own, and a store in another region: what is refused, what works, and what is said."""

import base64
import os
import time
from collections.abc import Iterator

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
from blocks.probe import ensure_ready, problems
from blocks.store_errors import PreconditionFailedError, StoreRefusedError, StoreUnfitError
from deployments.local.store_server import ObjectStoreServer, start_object_store
from tests.support import minio_client

from .conftest import CHECKOUT, CREDENTIALS, OpenStore, archive
from .wire import FakeStore, always, http, listening, s3_error


@pytest.fixture
def own_admin(own_archive: VideoArchive) -> Iterator[Minio]:
    """A client that may change the bucket's settings."""
    client = minio_client(own_archive)
    yield client
    client._http.clear()


def expires(prefix: str, *, rule_id: str = "tidy") -> Rule:
    return Rule(ENABLED, rule_filter=Filter(prefix=prefix), rule_id=rule_id, expiration=Expiration(days=30))


async def test_a_lifecycle_rule_that_takes_the_ledger_away_is_refused(own_store: ObjectStore, own_admin: Minio) -> None:
    rules = [expires("incoming/", rule_id="ok"), expires("requests/ab")]
    own_admin.set_bucket_lifecycle(own_store.bucket, LifecycleConfig(rules))
    with pytest.raises(StoreUnfitError, match=r"lifecycle rule.*tidy \(deletes .*again.*Limit the rule.*budget/"):
        await ensure_ready(own_store, thorough=True)


async def test_other_lifecycle_rules_are_fine_and_those_on_videos_are_noted(
    own_store: ObjectStore, own_admin: Minio
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
    own_admin.set_bucket_lifecycle(own_store.bucket, LifecycleConfig(rules))
    assert await problems(own_store) == []
    assert (await own_store.settings()).notes() == ["lifecycle rule videos (deletes videos/2026*)"]


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


@pytest.mark.parametrize(("rule", "shown"), RULES)
@pytest.mark.parametrize("namespace", ["", ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'])
def test_how_a_rule_is_read(rule: str, shown: list[str], namespace: str) -> None:
    document = f"<LifecycleConfiguration{namespace}><Rule>{rule}</Rule></LifecycleConfiguration>"
    assert [str(found) for found in parse_rules(document)] == shown


@pytest.mark.parametrize("prefix", ["", "ledger/", "open/", "o", "tasks/", "requests/ab", "budget/2026", "videos/"])
def test_a_rule_is_against_the_ledger_if_it_takes_a_part_of_it(prefix: str) -> None:
    rule = f"<ID>a</ID><Status>Enabled</Status><Filter><Prefix>{prefix}</Prefix></Filter>{DAY}"
    rules = parse_rules(f"<LifecycleConfiguration><Rule>{rule}</Rule></LifecycleConfiguration>")
    assert BucketSettings(rules).against_the_ledger() == [rule for rule in rules if prefix != "videos/"]
    assert len(rules) == 1


async def test_settings_that_may_not_be_read_or_that_a_store_does_not_know_are_no_error(own_open: OpenStore) -> None:
    for answer in (s3_error(403, "AccessDenied"), s3_error(501, "NotImplemented"), http(200, b"<h1>hello"), http(200)):
        async with listening(FakeStore(always(answer)).handle) as endpoint:
            store = own_open(archive(endpoint))
            settings = await store.settings()
            assert (settings.against_the_ledger(), settings.notes(), settings.stale_release) == ([], [], "")


async def test_a_versioned_bucket_works_and_is_noted(own_store: ObjectStore, own_admin: Minio) -> None:
    own_admin.set_bucket_versioning(own_store.bucket, VersioningConfig(ENABLED))
    assert await problems(own_store) == []
    assert "versioned" in (await own_store.settings()).notes()[0]
    first = await own_store.put_if("open/a", b"1", etag=None)
    await own_store.remove("open/a")
    assert await own_store.get("open/a") is None
    with pytest.raises(PreconditionFailedError):  # a delete marker is no version that can be changed
        await own_store.put_if("open/a", b"2", etag=first)
    await own_store.put_if("open/a", b"3", etag=None)
    assert await own_store.names("open/") == ["open/a"]


async def test_a_bucket_with_an_object_lock_and_retention_works_and_is_noted(
    own_archive: VideoArchive, own_admin: Minio, own_open: OpenStore
) -> None:
    own_admin.make_bucket(own_archive.bucket, object_lock=True)
    own_admin.set_object_lock_config(own_archive.bucket, ObjectLockConfig(COMPLIANCE, 1, DAYS))
    store = own_open(own_archive)
    assert await problems(store) == []
    assert (await store.settings()).notes()[0] == "retention COMPLIANCE for 1 days: no version can be deleted earlier"


def test_no_retention_is_none() -> None:
    assert parse_retention("<ObjectLockConfiguration/>") == ""
    years = "<Rule><DefaultRetention><Mode>GOVERNANCE</Mode><Years>2</Years></DefaultRetention></Rule>"
    assert parse_retention(f"<ObjectLockConfiguration>{years}</ObjectLockConfiguration>") == ("GOVERNANCE for 2 years")


@pytest.fixture(scope="module")
def own_special_minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStoreServer]:
    """A MinIO in another region that can encrypt."""
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
            local_dir=CHECKOUT / ".local", data_dir=folder / "data", log_dir=folder, credentials=CREDENTIALS
        )
    with server.process:  # past the patches, for another store may be started meanwhile
        _wait_for(server.endpoint)  # its region is another than `ready` asks with
        yield server


def _wait_for(endpoint: str) -> None:
    """Waits until it has read its settings: before, it says that it is well, and takes any region."""
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


async def test_a_bucket_that_encrypts_by_itself_works(
    own_special_minio: ObjectStoreServer, own_open: OpenStore
) -> None:
    """Then an etag is no MD5 of the content, and no two writes of the same bytes have the same one."""
    block = archive(own_special_minio.endpoint, region="eu-central-1")
    client = minio_client(block)
    client.make_bucket(block.bucket)
    client.set_bucket_encryption(block.bucket, SSEConfig(EncryptionRule.new_sse_s3_rule()))
    client._http.clear()
    store = own_open(block)
    assert await problems(store) == []
    first = await store.put_if("ledger/a.json", b"1", etag=None)
    assert await store.put_if("ledger/a.json", b"2", etag=first) != first
    assert await store.names("") == ["ledger/a.json", PROBE, "probe/race"]


async def test_a_wrong_region_is_named_with_the_right_one(
    own_special_minio: ObjectStoreServer, own_open: OpenStore
) -> None:
    store = own_open(archive(own_special_minio.endpoint, region="us-west-2"))
    for call in (store.create_bucket(), store.get("a"), store.put_if("a", b"", etag=None)):
        with pytest.raises(StoreRefusedError, match=r"eu-central-1.*Set region to eu-central-1") as refused:
            await call
        assert refused.value.code == "WrongRegion"


async def test_with_the_right_region_what_is_wrong_is_the_key_or_its_rights(
    own_special_minio: ObjectStoreServer, own_open: OpenStore
) -> None:
    """MinIO names its region in every error, once it has one."""
    block = archive(own_special_minio.endpoint, region="eu-central-1")
    await own_open(block).create_bucket()
    MinioAdmin(
        endpoint=own_special_minio.endpoint,
        credentials=StaticProvider(own_special_minio.access_key, own_special_minio.secret_key),
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
        store = own_open(block.model_copy(update=changed))
        for call in (store.put_if("a", b"", etag=None), store.remove("a"), store.names("")):
            with pytest.raises(StoreRefusedError) as refused:
                await call
            assert (type(refused.value), refused.value.code) == (StoreRefusedError, code)


async def test_a_redirect_to_another_region_is_followed_by_a_question_and_not_by_a_key(own_open: OpenStore) -> None:
    """AWS names a bucket's region to anybody, in a header that obstore does not show."""
    fake = FakeStore(always(http(301, b"", **{"x-amz-bucket-region": "eu-west-3"})))
    async with listening(fake.handle) as endpoint:
        with pytest.raises(StoreRefusedError, match=r"Set region to eu-west-3.*s3\.eu-west-3\.amazonaws\.com"):
            await own_open(archive(endpoint)).get("a")
    requested = next(head for head in fake.heads if head.startswith("HEAD"))
    assert "authorization" not in requested.lower()


STALE: list[tuple[str, int, str]] = [
    ("2025-09-07T16:13:09Z", 4, "2025-09-07T16:13:09Z"),
    ("2025-10-15T17:29:55Z", 4, "2025-10-15T17:29:55Z"),
    ("2025-10-15T17:29:55Z", 1, ""),
    ("2026-02-12T20:18:48Z", 4, ""),
    ("DEVELOPMENT.GOGET", 4, ""),
]


@pytest.mark.parametrize(("release", "drives", "found"), STALE)
async def test_a_release_that_ignores_conditions_without_a_quorum_is_named(
    own_open: OpenStore, release: str, drives: int, found: str
) -> None:
    disks = ",".join(["{}"] * drives)
    info = f'{{"servers": [{{"version": "{release}", "drives": [{disks}]}}]}}'.encode()
    for server, expected in (("MinIO", found), ("AmazonS3", "")):
        fake = FakeStore(always(http(200, info, server=server)))
        async with listening(fake.handle) as endpoint:
            assert (await own_open(archive(endpoint)).settings()).stale_release == expected
        assert any("/minio/" in head for head in fake.heads) is (server == "MinIO")


async def test_a_real_minio_of_one_drive_is_not_stale(own_store: ObjectStore) -> None:
    assert (await own_store.settings()).stale_release == ""
