"""What `sora up` has started, seen from outside: Prefect's API, the sandbox's record, the bucket, the commands."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import SecretStr

from blocks import VideoArchive
from deployments.local.stack_info import StackInfo
from deployments.sandbox import Fault
from flows.record.generation import Generation
from flows.record.ledger import Ledger
from tests.support.waiting import until

ROOT = Path(__file__).parent.parent.parent
SECONDS = 120.0
"""The time limit for anything. A run in its own process takes 4 to 8 s on two idle cores. Several take longer."""
SPEED = 60
"""4 s of video take 2 to 4 s to generate; without a callback, the first poll would come after 6 s."""
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}

Json = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Running:
    """A running stack."""

    info: StackInfo
    environment: dict[str, str]
    local_dir: Path
    http: httpx.AsyncClient
    prefect: httpx.AsyncClient
    """Prefect's own client, because it retries on 503, which means that SQLite is busy."""

    @property
    def api_url(self) -> str:
        return self.info.public_environment["PREFECT_API_URL"]

    @property
    def sandbox_url(self) -> str:
        return self.info.services["sandbox"].url

    # The sandbox.

    async def posts(self, prompt: str = "") -> list[Json]:
        """Every POST of a generation that the sandbox received, for one prompt or for all."""
        return [item for item in await self.requests() if item["call"] == "submit" and prompt in item["body"]]

    async def requests(self) -> list[Json]:
        return list((await self.http.get(f"{self.sandbox_url}/sandbox/requests")).raise_for_status().json())

    async def tasks(self) -> list[Json]:
        return list((await self.http.get(f"{self.sandbox_url}/sandbox/tasks")).raise_for_status().json())

    async def fault(self, **fields: Any) -> None:
        fault = Fault(**fields).model_dump(mode="json")
        (await self.http.post(f"{self.sandbox_url}/sandbox/faults", json=[fault])).raise_for_status()

    # The archive.

    @property
    def archive(self) -> VideoArchive:
        environment = self.info.load_environment()
        return VideoArchive(
            endpoint=environment["MINIO_ENDPOINT"],
            access_key=environment["MINIO_ACCESS_KEY"],
            secret_key=SecretStr(environment["MINIO_SECRET_KEY"]),
            secure=False,
        )

    async def recorded(self, *keys: str) -> list[Generation | None]:
        async with aclosing(self.archive.store()) as store:
            found = await Ledger(store).read_all(keys)
        return [found.get(key) for key in keys]

    async def wait_for_archived(self, *keys: str, seconds: float = SECONDS) -> list[Generation]:
        """The records, once all are archived."""

        async def all_archived() -> list[Generation] | None:
            found = [item for item in await self.recorded(*keys) if item is not None and item.state == "archived"]
            return found if len(found) == len(keys) else None

        return await until(all_archived, what=f"{len(keys)} archived videos", seconds=seconds)

    # Prefect.

    async def call(self, path: str, body: object = None) -> Any:
        """A POST to Prefect's API."""
        reply = await self.prefect.post(f"{self.api_url}{path}", json=body if body is not None else {})
        return reply.json() if reply.content else None

    async def deployment(self, name: str) -> Json:
        return dict((await self.prefect.get(f"{self.api_url}/deployments/name/{name}")).json())

    async def start(self, name: str, **parameters: Any) -> Json:
        """Starts a run of a deployment, as the UI's Run button does."""
        found = await self.deployment(name)
        return dict(await self.call(f"/deployments/{found['id']}/create_flow_run", {"parameters": parameters}))

    async def runs(self, name: str, **filters: Any) -> list[Json]:
        """The runs of a deployment, newest first."""
        found = await self.deployment(name)
        wanted = {"flow_runs": {"deployment_id": {"any_": [found["id"]]}, **filters}, "sort": "START_TIME_DESC"}
        return list(await self.call("/flow_runs/filter", wanted))

    async def wait_for_end(self, run: Json, *, than: str | None = None) -> Json:
        """The run, once it is in a final state (another one than `than`)."""

        async def final() -> Json | None:
            found = (await self.prefect.get(f"{self.api_url}/flow_runs/{run['id']}")).json()
            return found if found["state_type"] in FINAL and found["state_id"] != than else None

        return await until(final, what=f"the end of {run['name']}")

    async def retry(self, run: Json) -> Json:
        """Retries a run as the UI's Retry button does, and waits for the end."""
        state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}
        reported = await self.call(f"/flow_runs/{run['id']}/set_state", {"state": state})
        assert reported["status"] == "ACCEPT", reported
        return await self.wait_for_end(run, than=run["state_id"])

    async def table(self, artifact_key: str) -> list[Json]:
        """The newest table of this key, as the UI shows it."""
        found = (await self.prefect.get(f"{self.api_url}/artifacts/{artifact_key}/latest")).json()
        return list(json.loads(found["data"]))

    async def artifact_id(self, artifact_key: str) -> str:
        """The id of the newest artifact with this key."""
        # The response of `/latest` has the id of the collection instead.
        wanted = {"sort": "CREATED_DESC", "artifacts": {"key": {"any_": [artifact_key]}}}
        return str((await self.call("/artifacts/filter", wanted))[0]["id"])

    async def emit(
        self, event: str, payload: Json, *, event_id: str | None = None, resource_id: str = "my-shop.product.1"
    ) -> str:
        """Emits an event as any program can, with one HTTP call."""
        event_id = event_id or str(uuid.uuid4())
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        resource = {"prefect.resource.id": resource_id}
        body = [{"id": event_id, "occurred": stamp, "event": event, "resource": resource, "payload": payload}]
        await self.call("/events", body)
        return event_id

    # The command line.

    async def sora(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "deployments.cli", *arguments],
            env={**self.environment, **environment},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )


def descendants(pid: int) -> list[int]:
    """A process's children, theirs, and so on."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # it has just exited
            continue
        children.setdefault(int(fields[1]), []).append(int(status.parent.name))
    found = list(children.get(pid, ()))
    for child in found:
        found += children.get(child, ())
    return found


def kill_all(pids: list[int]) -> None:
    """kill -9, like a machine that fails."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
