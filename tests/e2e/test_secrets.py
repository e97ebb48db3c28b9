"""After runs that failed in every step, the secrets are searched for wherever the pipeline writes."""

import sqlite3
from pathlib import Path

from prefect.client.orchestration import PrefectClient

from deployments.object_store import ObjectStoreServer
from deployments.prefect_server import PrefectServer
from deployments.processes import ManagedProcess
from deployments.sandbox import Fault, SandboxServer, SandboxSettings
from tests.e2e.conftest import Runs, ended, retry
from tests.flows.conftest import store_blocks
from tests.support import make_api, make_archive, unique


def test_the_search_finds_what_it_looks_for(tmp_path: Path) -> None:
    database = tmp_path / "some.db"
    with sqlite3.connect(database) as connection:
        connection.execute("create table log (message text)")
        connection.execute("insert into log values ('the key is needle-1')")
    connection.close()
    assert found_in_database(database, ["needle-1", "needle-2"]) == ["log: needle-1"]
    (tmp_path / "some.log").write_text("needle-2 here")
    assert found_in_files(tmp_path, ["needle-2"]) == ["some.log: needle-2"]


async def test_secrets_and_signatures_stay_where_they_belong(
    films: Path,
    minio: ObjectStoreServer,
    prefect_server: PrefectServer,
    prefect: PrefectClient,
    start_run: Runs,
    worker: ManagedProcess,
    client_environment: dict[str, str],
    key: str,
) -> None:
    api_key = unique("very-secret-key")
    settings = SandboxSettings(speed=600, film_height=90, data_dir=films, api_key=api_key)
    with SandboxServer(settings) as sandbox:
        stored = await store_blocks(make_api(sandbox), make_archive(minio))
        for call, kind in [
            ("image", "http_404"), ("submit", "http_401"), ("status", "http_401"), ("result", "http_404"),
        ]:  # fmt: skip
            times = 2 if call == "result" else 1  # its addresses are asked for anew once
            sandbox.faults.add(Fault.model_validate({"call": call, "kind": kind, "times": times}))
        sandbox.faults.add(Fault(call="status", kind="junk"))
        sandbox.faults.add(Fault(call="result", kind="html_200"))
        request = {
            "prompt": "a secret",
            "image_urls": [f"{sandbox.base_url}/samples/harbour.jpg?signature=in-the-query"],
        }
        run = await start_run(request=request, key=key, api=stored.name, archive=stored.name)
        result = await ended(prefect, run.id)
        for _ in range(4):
            assert result.state is not None
            assert result.state.is_failed()
            await retry(prefect_server, result)
            result = await ended(prefect, run.id, than=result.state.id)
        assert result.state is not None
        assert result.state.is_completed(), result.state
        signatures = {item.query for item in sandbox.record.results()}
        assert all(signatures)
        secrets = [api_key, minio.secret_key, "X-Amz-Signature", *signatures]

    assert found_in_database(prefect_server.home / "prefect.db", secrets) == []
    assert found_in_files(Path(client_environment["SORA_SPOOL_DIR"]), secrets) == []
    assert [secret for secret in secrets if secret in worker.log_path.read_text()] == []
    store = stored.archive.store()
    try:
        for name in await store.names(""):
            found = await store.get(name)
            assert found is not None
            assert [secret for secret in secrets if secret.encode() in found.data] == [], name
    finally:
        await store.aclose()


def found_in_database(database: Path, secrets: list[str]) -> list[str]:
    """Which table holds which secret, in clear."""
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
    """Which file holds which secret."""
    return [
        f"{path.relative_to(folder)}: {secret}"
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".db"
        for secret in secrets
        if secret.encode() in path.read_bytes()
    ]
