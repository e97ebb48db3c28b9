"""Deploys prefect.yaml, and on a local stack the examples: work pool, queues, deployments, schedules, triggers."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import yaml
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound

from deployments.connection import SetupError
from deployments.setup.blocks import Outcome, Saved

ROOT: Final = Path(__file__).resolve().parents[2]
"""The folder of prefect.yaml. A worker runs the code from there."""
MAIN: Final = "prefect.yaml"
EXAMPLES: Final = "deployments/examples/prefect.yaml"
"""Only for a local stack: on another server, running these deployments would cost money."""
PACKAGES: Final = ("apixo", "blocks", "flows", "deployments")
POOL: Final = "sora"
QUEUES: Final[Mapping[str, tuple[int, int | None]]] = {
    "collector": (1, None),
    "videos": (2, 10),
    "shards": (3, 100),  # separate: otherwise ten batches that wait for their shards would block them
}
"""Each queue's priority (1 is the highest), and how many of its runs may be in progress at once. A run is a process of
83 to 100 MB, so ten need a gigabyte. Further runs wait."""
PREFECT: Final = (sys.executable, "-m", "prefect")
DEPLOY_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One deployment in a file, with the names of its triggers and the slugs of its schedules."""

    name: str
    flow: str
    triggers: frozenset[str]
    schedules: frozenset[str]


async def deploy(*files: str) -> list[Saved]:
    """Creates what is missing on the Prefect server, and redeploys what has changed. Repeating it changes nothing.

    A deployment is current if it has this code's version. Redeploying it anyway would create a new automation for
    every trigger each time. Schedules that a user has turned on or off, or created, are kept.

    Args:
        files: what to deploy, relative to `ROOT`: `MAIN`, `EXAMPLES`.

    Raises:
        SetupError: a file is not next to this code, or Prefect rejected it.
    """
    for file in files:
        if not (ROOT / file).is_file():
            raise SetupError(
                f"There is no {file} in {ROOT}. Deploy from a checkout of this project, or write your own "
                "deployments for flows/generate_video.py, flows/generate_batch.py and flows/collect_videos.py."
            )
    this = code_version(ROOT)
    async with get_client() as client:
        saved = [Saved("work pool", POOL, await _make_pool(client))]
        saved += [Saved("work queue", name, await _make_queue(client, name)) for name in QUEUES]
        for file in files:
            saved += await _deploy_file(client, file, this)
    return saved


async def _deploy_file(client: PrefectClient, file: str, this: str) -> list[Saved]:
    saved: list[Saved] = []
    wanted = wanted_deployments((ROOT / file).read_text())
    before = {item.name: await deployed(client, item) for item in wanted}
    versions = {item.name: await _version(client, item, before[item.name]) for item in wanted}
    if any(version != this for version in versions.values()):
        schedules = {name: await client.read_deployment_schedules(found.id) for name, found in before.items() if found}
        try:
            _prefect_deploy(file, this)
        finally:  # also for those that were deployed before a failure
            for item in wanted:
                if now := await deployed(client, item):
                    kept = await keep_schedules(client, now.id, schedules.get(item.name, []), item.schedules)
                    saved += [Saved("schedule", f"{item.name}: {name}", how) for name, how in kept]
    for item in wanted:
        outcome: Outcome = "created" if before[item.name] is None else "updated"
        saved.append(Saved("deployment", item.name, "unchanged" if versions[item.name] == this else outcome))
    return saved


def wanted_deployments(text: str) -> list[_Wanted]:
    """The deployments in the text of a prefect.yaml. Pure."""
    return [
        _Wanted(
            name=item["name"],
            flow=str(item["entrypoint"]).rpartition(":")[2].replace("_", "-"),
            triggers=frozenset(trigger["name"] for trigger in item.get("triggers", ())),
            schedules=frozenset(schedule["slug"] for schedule in item.get("schedules", ())),
        )
        for item in yaml.safe_load(text)["deployments"]
    ]


def code_version(root: Path) -> str:
    """The version of a deployment: the package's version, and a digest of both files, the code and its path."""
    digest = hashlib.sha256(str(root).encode())
    code = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    for path in [root / MAIN, root / EXAMPLES, *code]:
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
    return "unchanged"  # whatever its type: any work pool works


async def _make_queue(client: PrefectClient, name: str) -> Outcome:
    priority, limit = QUEUES[name]
    try:
        await client.read_work_queue_by_name(name, work_pool_name=POOL)
    except ObjectNotFound:
        await client.create_work_queue(name=name, work_pool_name=POOL, priority=priority, concurrency_limit=limit)
        return "created"
    return "unchanged"  # a user may have changed its limit


async def deployed(client: PrefectClient, wanted: _Wanted) -> DeploymentResponse | None:
    """A deployment on the server; None: there is none."""
    try:
        return await client.read_deployment_by_name(f"{wanted.flow}/{wanted.name}")
    except ObjectNotFound:
        return None


async def _version(client: PrefectClient, wanted: _Wanted, found: DeploymentResponse | None) -> str:
    """The deployed version; empty if there is none, or one of its triggers is gone."""
    for trigger in wanted.triggers:
        if not await client.read_automations_by_name(trigger):
            return ""
    return (found.version if found else None) or ""


async def keep_schedules(
    client: PrefectClient, deployment_id: UUID, before: Sequence[DeploymentSchedule], slugs: Collection[str]
) -> list[tuple[str, Outcome]]:
    """Restores users' changes to schedules after a deployment, and removes those that prefect.yaml no longer has.

    `prefect deploy` resets every schedule to what prefect.yaml says, and drops those that were made in the UI. If
    prefect.yaml no longer has any schedule for a deployment, it keeps all of them.

    A schedule of prefect.yaml has one of the slugs. It stays on or off, whatever else changed. One without a slug was
    created by a user, and is created again.

    Returns:
        Each schedule that differs from prefect.yaml, or was removed, to be shown: a user who has just turned one off in
        prefect.yaml must see that it stays on.
    """
    kept: list[tuple[str, Outcome]] = []
    after = []
    for schedule in await client.read_deployment_schedules(deployment_id):
        if schedule.slug and schedule.slug not in slugs:
            await client.delete_deployment_schedule(deployment_id, schedule.id)
            kept.append((schedule.slug, "removed"))
        else:
            after.append(schedule)
    by_slug = {schedule.slug: schedule for schedule in after}
    for schedule in before:
        now = by_slug.get(schedule.slug)
        if schedule.slug and now is not None and now.active != schedule.active:
            await client.update_deployment_schedule(deployment_id, now.id, active=schedule.active)
            kept.append((schedule.slug, "stays on" if schedule.active else "stays off"))
        elif not schedule.slug and all(schedule.schedule != other.schedule for other in after):
            theirs = DeploymentScheduleCreate(
                schedule=schedule.schedule,
                active=schedule.active,
                max_scheduled_runs=schedule.max_scheduled_runs,
                parameters=schedule.parameters,
            )
            await client.create_deployment_schedules(deployment_id, [theirs])
            kept.append(("created by a user", "kept"))
    return kept


def _prefect_deploy(file: str, code: str) -> None:
    environment: dict[str, Any] = {**os.environ, "SORA_DEPLOY_VERSION": code}
    try:
        done = subprocess.run(  # noqa: S603 - no text from outside
            [*PREFECT, "--no-prompt", "deploy", "--all", "--prefect-file", file],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=DEPLOY_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise SetupError(f"`prefect deploy` of {file} did not end within {DEPLOY_SECONDS:.0f} s. Try again.") from error
    if done.returncode != 0:
        raise SetupError(f"`prefect deploy` of {file} failed in {ROOT}:\n{(done.stdout + done.stderr)[-4000:]}")
