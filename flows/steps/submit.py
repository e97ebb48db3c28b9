"""Submits the request to the provider: the only step that pays. Its decisions are in `flows.submission`."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from apixo import VideoRequest
from flows.record.ledger import Entry
from flows.resources import PayingResources
from flows.submission import Submission, Terms


# retries=0: not even a profile's default retries may repeat this step automatically.
@task(name="submit", task_run_name="submit {key}", retries=0, cache_policy=NO_CACHE, persist_result=False)
async def submit(key: str, request: VideoRequest, resources: PayingResources, terms: Terms) -> Entry:
    """Submits the request to the provider, once per key. Prefect never retries it; it repeats only provable rejections.

    Raises:
        KeyConflictError: the key belongs to another request.
        DuplicateRequestError: the request was submitted under another key, and duplicates are rejected.
        SubmissionRejectedError: the provider rejected it, could not be reached, or gave no status of the failed task
            that would be paid for again. Nothing was paid.
        UnconfirmedError: no clear answer came, now or in an earlier run. It may have been paid.
        VideoFailedError: the provider accepted it earlier, and its task failed.
        StoreError: the ledger cannot be written, so nothing was submitted.
    """
    return await Submission(key, request, resources, terms).run()
