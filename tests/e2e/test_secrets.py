"""After runs that failed in every step, no secret is found anywhere that the pipeline writes."""

import re
import sqlite3
from pathlib import Path

import httpx
from prefect.blocks.system import Secret
from prefect.client.orchestration import PrefectClient

from deployments.local.prefect_server import PrefectServer
from deployments.local.processes import ManagedProcess, free_port, wait_until_ready
from deployments.local.store_server import ObjectStoreServer
from deployments.sandbox import Fault, SandboxServer, SandboxSettings
from tests.e2e.conftest import ROOT, Runs, retry, wait_for_end
from tests.flows.conftest import store_blocks
from tests.support import make_api, make_archive, unique
from tests.support.fork_server import ForkServer
from tests.support.store_gate import StoreGate, nothing


def test_search_finds_planted_secrets(tmp_path: Path) -> None:
    database = tmp_path / "some.db"
    with sqlite3.connect(database) as connection:
        connection.execute("create table log (message text)")
        connection.execute("insert into log values ('the key is needle-1')")
    connection.close()
    assert found_in_database(database, ["needle-1", "needle-2"]) == ["log: needle-1"]
    (tmp_path / "some.log").write_text("needle-2 here")
    assert found_in_files(tmp_path, ["needle-2"]) == ["some.log: needle-2"]
    assert found_in_files(tmp_path, ["needle-1"]) == ["some.db: needle-1"]


async def test_secrets_and_signatures_are_not_leaked(
    video_folder: Path,
    minio: ObjectStoreServer,
    prefect_server: PrefectServer,
    prefect: PrefectClient,
    start_quick_run: Runs,
    worker: ManagedProcess,
    forks: ForkServer,
    client_environment: dict[str, str],
    key: str,
    tmp_path: Path,
) -> None:
    """Every step fails at least once. The callbacks arrive while the store is unavailable, and one has a bad token."""
    api_key, callback_secret = unique("very-secret-key"), unique("callback-secret")
    settings = SandboxSettings(speed=600, video_height=90, data_dir=video_folder, api_key=api_key)
    with SandboxServer(settings) as sandbox, StoreGate(minio.endpoint) as gate:
        port = free_port()
        api = make_api(sandbox, callback_url=f"http://127.0.0.1:{port}", callback_secret=Secret(value=callback_secret))
        stored = await store_blocks(api, make_archive(minio, endpoint=gate.endpoint))
        receiver = ManagedProcess(
            [*forks.command(), "callbacks", f"--port={port}", f"--api={stored.name}", f"--archive={stored.name}"],
            name="receiver",
            log_path=tmp_path / "receiver.log",
            environment=client_environment,
            cwd=ROOT,
        )
        try:
            wait_until_ready(
                lambda: "Waiting for callbacks" in receiver.log_path.read_text(),
                process=receiver,
                timeout_seconds=60,
            )
            for call, kind in [
                ("image", "http_404"), ("submit", "http_401"), ("status", "http_401"), ("result", "http_404"),
            ]:  # fmt: skip
                times = 2 if call == "result" else 1  # its URLs are requested again once
                sandbox.faults.add(Fault.model_validate({"call": call, "kind": kind, "times": times}))
            sandbox.faults.add(Fault(call="status", kind="junk"))
            sandbox.faults.add(Fault(call="result", kind="html_200"))
            gate.shut = lambda data: data.startswith(b"PUT ") and b"/videos/" in data.split(b"\r\n", 1)[0]
            request = {
                "prompt": "a secret",
                "image_urls": [f"{sandbox.base_url}/samples/harbor.jpg?signature=in-the-query"],
            }
            run = await start_quick_run(request=request, key=key, api=stored.name, archive=stored.name)
            result = await wait_for_end(prefect, run.id)
            failures: list[str] = []
            while result.is_failed() and len(failures) < 10:
                failures.append(result.message or "")
                if "object store" in failures[-1]:
                    gate.shut = nothing
                result = await retry(prefect, run.id, result)
            assert result.is_completed(), result
            print("\n" + "\n".join(failures))
            assert len(failures) >= 5
            sent = " ".join(item.body for item in sandbox.record.submits())
            paths = re.findall(rf"/apixo/{key}/[^\"]+", sent)
            tokens = {path.rpartition("/")[2] for path in paths}
            assert min(map(len, tokens)) >= 32
            for path in [*paths, f"/apixo/{key}/forged"]:
                gate.shut = lambda data: b"/ledger/" in data.split(b"\r\n", 1)[0]
                async with httpx.AsyncClient(timeout=60) as http:
                    await http.post(f"http://127.0.0.1:{port}{path}", json={"data": {"taskId": "t"}})
        finally:
            receiver.stop()
        signatures = {item.query for item in sandbox.record.results()}
        assert all(signatures)
        secrets = [api_key, minio.secret_key, callback_secret, "X-Amz-Signature", *tokens, *signatures]

    assert found_in_database(prefect_server.home / "prefect.db", secrets) == []
    folders = {
        "Prefect's home": prefect_server.home,
        "Prefect's log": prefect_server.process.log_path.parent,
        "the work directory": Path(client_environment["SORA_WORK_DIR"]),
        "the worker": worker.log_path.parent,
        "the receiver": tmp_path,
        "MinIO": minio.process.log_path.parent,
    }
    for what, folder in folders.items():
        assert folder.is_dir(), what
        lines = [line for line in found_in_files(folder, secrets) if not line.startswith("credentials.json")]
        assert lines == [], what  # MinIO's own key is in the file that it is started with
    assert key in receiver.log_path.read_text()
    store = stored.archive.model_copy(update={"endpoint": minio.endpoint}).store()  # the gate is closed
    try:
        for name in await store.names(""):
            found = await store.get(name)
            assert found is not None
            assert [secret for secret in secrets if secret.encode() in found.data] == [], name
    finally:
        await store.aclose()


def found_in_database(database: Path, secrets: list[str]) -> list[str]:
    """Which table contains which secret in clear text."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)
    try:
        tables = [row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")]
        found = []
        for table in tables:
            for row in connection.execute(f'select * from "{table}"'):  # noqa: S608 - names from the schema itself
                text = repr(row)
                found += [f"{table}: {secret}" for secret in secrets if secret in text]
        return found
    finally:
        connection.close()


def found_in_files(folder: Path, secrets: list[str]) -> list[str]:
    """Which file contains which secret."""
    return [
        f"{path.relative_to(folder)}: {secret}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        for secret in secrets
        if secret.encode() in path.read_bytes()
    ]
