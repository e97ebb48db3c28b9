"""The five steps of a generation, each a Prefect task in its own file; `retrieve` runs the last two.

Their work is in modules of `flows`: submit in `submission`, wait in `task_end`, fetch in `fetching`, archive in
`archiving`. `retrying.py` defines when Prefect retries them.

A step reads in the ledger whether its work is already done, logs that and returns at once. The ledger decides this,
not Prefect's result cache, which would lose the paid call. So the tasks persist no results and use no cache.
"""

from flows.steps.archive import archive
from flows.steps.fetch import fetch
from flows.steps.retrieve import retrieve
from flows.steps.submit import submit
from flows.steps.validate_image import validate_image
from flows.steps.wait import wait

__all__ = ["archive", "fetch", "retrieve", "submit", "validate_image", "wait"]
