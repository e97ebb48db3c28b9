"""A local fake of the APIXO Sora-2 API: documented behavior, scripted faults, playable videos, no cost."""

from deployments.sandbox.faults import Fault, FaultScript
from deployments.sandbox.server import SandboxServer, serve
from deployments.sandbox.settings import SandboxSettings

__all__ = ["Fault", "FaultScript", "SandboxServer", "SandboxSettings", "serve"]
