"""Requests for models other than sora-2, and models that become unavailable."""

from apixo import VideoRequest
from deployments.sandbox import Fault, SandboxServer

KLING = VideoRequest(prompt="Dunes at dusk", model="kling-2-6", options={"sound": True}, tags=["spring", "dunes"])
SAFE = VideoRequest(prompt="Dunes at dusk", fallback_models=["kling-3-0-turbo", "future-1"])
UNAVAILABLE = ["http_404", "http_400_model"]


def requested(sandbox: SandboxServer) -> list[tuple[str | None, bool]]:
    """The model of each paid call, and whether it was charged."""
    return [(request.model, request.charged) for request in sandbox.record.submits()]


def fail_submits(sandbox: SandboxServer, *models: str, kind: str = "http_404", times: int = -1) -> None:
    """Fails submissions with these models. By default, they are unavailable."""
    sandbox.faults.add(*(Fault(call="submit", kind=kind, model=model, times=times) for model in models))
