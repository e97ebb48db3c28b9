"""The command line `sora`."""

from deployments.cli.main import app, main

__all__ = ["app", "main"]
