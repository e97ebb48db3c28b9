"""Each object store that can be started here: the race, all that `sora doctor` asks of it, and the ledger's model.

`make stores` runs this and prints what docs/stores.md says. A store whose program is missing is skipped.
"""

import os
import secrets
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from blocks import VideoArchive
from blocks.probe import problems
from blocks.probe_race import RACERS, prove_race
from deployments.local.credentials import Credentials
from deployments.local.minio_build import FORCE_VARIABLE
from deployments.local.object_store import ObjectStoreServer, _accepts, start_object_store
from deployments.local.processes import LOOPBACK, ManagedProcess, free_port
from tests.attack.model.director import direct, opened
from tests.support import unique

pytestmark = pytest.mark.stores

ROOT = Path(__file__).parents[2]
RACES = 5
CREDENTIALS = Credentials("sora", secrets.token_hex(20))


def start_local(kind: str, folder: Path) -> ObjectStoreServer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FORCE_VARIABLE, kind)
        return start_object_store(
            local_dir=ROOT / ".local", data_dir=folder / "data", log_dir=folder, credentials=CREDENTIALS
        )


def start_versitygw(folder: Path) -> ObjectStoreServer:
    """VersityGW in front of a folder, which has to be on a file system with extended attributes."""
    program = shutil.which("versitygw") or shutil.which("versitygw", path=str(ROOT / ".local" / "bin"))
    if program is None:
        pytest.skip("versitygw is neither on PATH nor in .local/bin")
    (folder / "data").mkdir()
    endpoint = f"{LOOPBACK}:{free_port()}"
    return ObjectStoreServer(
        kind="minio",  # of the kinds of a local stack, which this is none of, the nearest
        process=ManagedProcess(
            [program, "--port", endpoint, "posix", str(folder / "data")],
            name="VersityGW",
            log_path=folder / "versitygw.log",
            environment={
                **os.environ,
                "ROOT_ACCESS_KEY": CREDENTIALS.access_key,
                "ROOT_SECRET_KEY": CREDENTIALS.secret_key,
            },
        ),
        url=f"http://{endpoint}",
        endpoint=endpoint,
        access_key=CREDENTIALS.access_key,
        secret_key=CREDENTIALS.secret_key,
        answers=lambda: _accepts(endpoint, CREDENTIALS),
    )


@pytest.fixture(scope="module", params=["minio", "seaweedfs", "versitygw"])
def store_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ObjectStoreServer]:
    """A store, with a folder of its own."""
    folder = tmp_path_factory.mktemp(request.param)
    started = start_versitygw(folder) if request.param == "versitygw" else start_local(request.param, folder)
    with started.ready().process:
        yield started


async def test_of_32_writers_one_wins_each_time(store_server: ObjectStoreServer) -> None:
    archive = block(store_server)
    store = archive.store()
    await store.create_bucket()
    try:
        took = []
        for _ in range(RACES):
            began = time.monotonic()
            await prove_race(store)
            took.append(time.monotonic() - began)
    finally:
        await store.aclose()
    report(store_server, f"two races of {RACERS}: {statistics.median(took):.2f} s, the median of {RACES}")


async def test_all_that_the_doctor_asks_for_is_kept(store_server: ObjectStoreServer) -> None:
    store = block(store_server).store()
    await store.create_bucket()
    began = time.monotonic()
    try:
        assert [str(problem) for problem in await problems(store)] == []
    finally:
        await store.aclose()
    report(store_server, f"everything that is proven: {time.monotonic() - began:.2f} s")


@pytest.mark.timeout(900)
def test_the_ledgers_promises_are_kept(store_server: ObjectStoreServer, tmp_path: Path) -> None:
    began = time.monotonic()
    with opened(store_server, tmp_path) as house:
        direct(house, plays=1, steps=20, chosen=True)
    report(store_server, f"the ledger's model: {house.tally['checks']:,} steps in {time.monotonic() - began:.0f} s")


def block(server: ObjectStoreServer) -> VideoArchive:
    return VideoArchive(
        endpoint=server.endpoint,
        access_key=server.access_key,
        secret_key=SecretStr(server.secret_key),
        secure=False,
        bucket=unique("stores"),
    )


def report(server: ObjectStoreServer, words: str) -> None:
    print(f"\n{server.process.name:10} {words}")
