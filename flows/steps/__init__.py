"""The five steps of a generation, each a Prefect task, one to a file; `retrieve` takes the last two.

What they do is in modules of `flows`: submit in `submission`, wait in `task_end`, fetch in `fetching`, archive in
`archiving`. When Prefect retries them is in `calling.py`.

A step whose work is already done reads that in the ledger, says so and ends at once. The ledger decides this, not
Prefect's result cache, which would lose the paid call. So the tasks persist no results and use no cache.
"""

from flows.steps.archive import archive
from flows.steps.fetch import fetch
from flows.steps.retrieve import retrieve
from flows.steps.submit import submit
from flows.steps.validate_image import validate_image
from flows.steps.wait import wait

__all__ = ["archive", "fetch", "retrieve", "submit", "validate_image", "wait"]
