"""Sets up a Prefect server: the blocks, the work pool, the deployments of prefect.yaml."""
