"""What a doctor looks at beside a run's own needs: the Prefect server, the workers, what is deployed."""

from prefect import __version__ as prefect_version
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import WorkerStatus
from prefect.exceptions import ObjectNotFound

from deployments.setup.deploy import MAIN, POOL, ROOT, code_version, wanted_deployments
from flows.checks import Finding


async def check_server() -> list[Finding]:
    """The Prefect server that this process talks to, its work pool with its workers, and what is deployed."""
    async with get_client() as client:
        if (error := await client.api_healthcheck()) is not None:
            detail = f"{client.api_url} does not answer ({type(error).__name__}). Is it up? Is PREFECT_API_URL right?"
            return [Finding(name="prefect server", outcome="error", detail=detail)]
        version = await client.api_version()
        detail = f"{client.api_url} answers, version {version}; this is {prefect_version}"
        server = Finding(name="prefect server", outcome="ok", detail=detail)
        if version.split(".")[:2] != prefect_version.split(".")[:2]:
            server = Finding(name="prefect server", outcome="warning", detail=f"{detail}: use the same, to be sure")
        return [server, await _worker(client), await _deployments(client)]


async def _worker(client: PrefectClient) -> Finding:
    start = f"prefect worker start --pool {POOL}"
    try:
        await client.read_work_pool(POOL)
    except ObjectNotFound:
        detail = f"There is no work pool {POOL!r}, so nothing deployed can run. Run `sora setup`, then: {start}"
        return Finding(name="worker", outcome="warning", detail=detail)
    online = [
        worker for worker in await client.read_workers_for_work_pool(POOL) if worker.status is WorkerStatus.ONLINE
    ]
    if not online:
        detail = f"No worker is online in the pool {POOL!r}: deployed runs wait. Start one with: {start}"
        return Finding(name="worker", outcome="warning", detail=detail)
    return Finding(name="worker", outcome="ok", detail=f"{len(online)} online in the pool {POOL!r}")


async def _deployments(client: PrefectClient) -> Finding:
    this, missing, other = code_version(ROOT), [], []
    for wanted in wanted_deployments((ROOT / MAIN).read_text()):
        try:
            found = await client.read_deployment_by_name(wanted.full_name)
        except ObjectNotFound:
            missing.append(wanted.name)
        else:
            if found.version != this:
                other.append(wanted.name)
    if missing or other:
        said = [f"{', '.join(missing)} not deployed"] if missing else []
        said += [f"{', '.join(other)} deployed from other code"] if other else []
        return Finding(name="deployments", outcome="warning", detail=f"{'; '.join(said)}. Deploy with: sora deploy")
    return Finding(name="deployments", outcome="ok", detail=f"deployed from this code, {this}")
