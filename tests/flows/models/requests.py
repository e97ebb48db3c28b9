"""Requests for models other than sora-2, which may be gone."""

from apixo import VideoRequest
from deployments.sandbox import Fault, SandboxServer

KLING = VideoRequest(prompt="Dunes at dusk", model="kling-2-6", options={"sound": True}, tags=["spring", "dunes"])
SAFE = VideoRequest(prompt="Dunes at dusk", fallback_models=["kling-3-0-turbo", "future-1"])
GONE = ["http_404", "http_400_model"]


def requested(sandbox: SandboxServer) -> list[tuple[str | None, bool]]:
    """Which model each paid call asked for, and whether it was charged."""
    return [(request.model, request.charged) for request in sandbox.record.submits()]


def gone(sandbox: SandboxServer, *models: str, kind: str = "http_404", times: int = -1) -> None:
    sandbox.faults.add(*(Fault(call="submit", kind=kind, model=model, times=times) for model in models))
