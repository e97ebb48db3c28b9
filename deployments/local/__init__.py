"""The local stack: MinIO, a Prefect server, the sandbox and a worker as children of one process."""
