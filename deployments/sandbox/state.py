"""All that one sandbox knows."""

from deployments.sandbox.faults import FaultScript
from deployments.sandbox.record import RequestRecord
from deployments.sandbox.settings import SandboxSettings
from deployments.sandbox.tasks import TaskBoard


class SandboxState:
    """How a sandbox is set, what it was asked, what is to go wrong, and its tasks."""

    def __init__(self, settings: SandboxSettings | None = None) -> None:
        self.settings = settings or SandboxSettings()
        self.record = RequestRecord()
        self.faults = FaultScript()
        self.tasks = TaskBoard(self.settings, self.faults)
