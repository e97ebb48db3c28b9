"""Deploys prefect.yaml: the work pool, its queues, the deployments with their schedules and triggers."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import yaml
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.exceptions import ObjectNotFound

from deployments.connection import SetupError
from deployments.schedules import keep_schedules
from deployments.setup import Outcome, Saved

ROOT: Final = Path(__file__).resolve().parent.parent
"""Where prefect.yaml is; a worker runs the code from there."""
POOL: Final = "sora"
QUEUES: Final[Mapping[str, tuple[int, int | None]]] = {"collector": (1, None), "videos": (2, 10)}
"""Each queue's priority, 1 being the first, and how many runs of it may be under way at once: a run is a process of 83
to 100 MB, so ten need a gigabyte. What comes beyond waits its turn."""
DEPLOY_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One deployment of prefect.yaml."""

    name: str
    flow: str
    triggers: frozenset[str]

    @property
    def full_name(self) -> str:
        """As Prefect addresses it."""
        return f"{self.flow}/{self.name}"


async def deploy() -> list[Saved]:
    """Makes what is missing on the Prefect server, and deploys anew what has changed. Repeating it changes nothing.

    A deployment is current when its version is that of this code: Prefect itself would give every trigger a new
    automation each time. Schedules that a person has switched on or off, or made, stay so.

    Raises:
        SetupError: there is no prefect.yaml beside this code, or Prefect refused it.
    """
    if not (ROOT / "prefect.yaml").is_file():
        raise SetupError(
            f"There is no prefect.yaml in {ROOT}. Deploy from a checkout of this project, or write deployments of your "
            "own for flows/generate_video.py, flows/generate_batch.py and flows/collect_videos.py."
        )
    async with get_client() as client:
        saved = [Saved("work pool", POOL, await _make_pool(client))]
        saved += [Saved("work queue", name, await _make_queue(client, name)) for name in QUEUES]
        wanted = wanted_deployments((ROOT / "prefect.yaml").read_text())
        this = code_version(ROOT)
        before = {item.name: await _version(client, item) for item in wanted}
        if any(found != this for found in before.values()):
            schedules = {item.name: await _schedules(client, item) for item in wanted}
            try:
                _prefect_deploy(this)
            finally:  # also of those that were deployed before it failed
                for item in wanted:
                    saved += await _keep_schedules(client, item, schedules[item.name])
        for item in wanted:
            outcome: Outcome = "created" if before[item.name] is None else "updated"
            saved.append(Saved("deployment", item.name, "unchanged" if before[item.name] == this else outcome))
    return saved


def wanted_deployments(text: str) -> list[_Wanted]:
    """What prefect.yaml asks for. Pure."""
    return [
        _Wanted(
            name=item["name"],
            flow=str(item["entrypoint"]).rpartition(":")[2].replace("_", "-"),
            triggers=frozenset(trigger["name"] for trigger in item.get("triggers", ())),
        )
        for item in yaml.safe_load(text)["deployments"]
    ]


def code_version(root: Path) -> str:
    """The version of what is deployed: the package's, and a digest of prefect.yaml, the code and its place."""
    digest = hashlib.sha256(str(root).encode())
    for path in [root / "prefect.yaml", *sorted(root.glob("[a-z]*/**/*.py"))]:
        if path.relative_to(root).parts[0] in ("prefect.yaml", "apixo", "blocks", "flows", "deployments"):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return f"{version('sora-pipeline')}+{digest.hexdigest()[:12]}"


async def _make_pool(client: PrefectClient) -> Outcome:
    try:
        await client.read_work_pool(POOL)
    except ObjectNotFound:
        await client.create_work_pool(
            WorkPoolCreate(name=POOL, type="process", description="Runs the flows of the Sora pipeline.")
        )
        return "created"
    return "unchanged"  # of whatever type: any work pool will do


async def _make_queue(client: PrefectClient, name: str) -> Outcome:
    priority, limit = QUEUES[name]
    try:
        await client.read_work_queue_by_name(name, work_pool_name=POOL)
    except ObjectNotFound:
        await client.create_work_queue(name=name, work_pool_name=POOL, priority=priority, concurrency_limit=limit)
        return "created"
    return "unchanged"  # a person may have changed its limit


async def _version(client: PrefectClient, wanted: _Wanted) -> str | None:
    """The version that is deployed; None when there is none, and empty when one of its triggers is gone."""
    try:
        found = await client.read_deployment_by_name(wanted.full_name)
    except ObjectNotFound:
        return None
    for trigger in wanted.triggers:
        if not await client.read_automations_by_name(trigger):
            return ""
    return found.version or ""


async def _schedules(client: PrefectClient, wanted: _Wanted) -> list[DeploymentSchedule]:
    try:
        found = await client.read_deployment_by_name(wanted.full_name)
    except ObjectNotFound:
        return []
    return await client.read_deployment_schedules(found.id)


async def _keep_schedules(client: PrefectClient, wanted: _Wanted, before: Sequence[DeploymentSchedule]) -> list[Saved]:
    try:
        found = await client.read_deployment_by_name(wanted.full_name)
    except ObjectNotFound:
        return []
    kept = await keep_schedules(client, found.id, before)
    return [Saved("schedule", f"{wanted.name}: {name}", how) for name, how in kept]


def _prefect_deploy(code: str) -> None:
    environment: dict[str, Any] = {**os.environ, "SORA_DEPLOY_VERSION": code}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=DEPLOY_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise SetupError(f"`prefect deploy --all` did not end within {DEPLOY_SECONDS:.0f} s. Try again.") from error
    if done.returncode != 0:
        raise SetupError(f"`prefect deploy --all` failed in {ROOT}:\n{(done.stdout + done.stderr)[-4000:]}")
