"""`python -m deployments.cli` is `sora`."""

from deployments.cli import main

main()
