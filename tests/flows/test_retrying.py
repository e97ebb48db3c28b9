"""When a step is retried automatically, and after which delay."""

from typing import Any

import pytest
from prefect import task
from prefect.client.schemas.objects import State as PrefectState
from prefect.client.schemas.objects import TaskRun
from prefect.states import Completed
from prefect.states import Failed as FailedState

from apixo import errors as api
from blocks import store_errors as store
from flows import steps
from flows.balance import BalanceError
from flows.batch.budget import BudgetError
from flows.batch.limited_flow import TooManyRequestsError
from flows.batch.summary import BadRowsError, BatchError, BatchFailedError, summarize
from flows.batch.tables import CalendarError
from flows.check_setup import SetupCheckError
from flows.collect_videos import CollectionError
from flows.media import media_errors as media
from flows.paid_call import PaymentThreadDiedError
from flows.preview_then_final import AnswerError
from flows.record import pipeline_errors as pipeline
from flows.record.pipeline_errors import TransitionError
from flows.resolution import ResolutionError
from flows.steps.retrying import LONGEST_DELAY_SECONDS, RETRIES, delays_seconds, is_transient, retry_transient

EMPTY_SUMMARY = summarize("may", [], price=None, spent_before=None)

TRANSIENT: list[BaseException] = [
    api.NotSentError("no connection"),
    api.RateLimitError("429"),
    api.NoReplyError("cut"),
    api.ServerError("500"),
    api.UnexpectedReplyError("junk"),
    api.DeadlineError("late"),
    store.StoreUnavailableError("no answer"),
    pipeline.ArchiveMismatchError("differs"),
    media.DownloadError("cut"),
    media.CutDownloadError("cut"),
    media.DamagedVideoError("half"),
    media.ResultExpiredError("403", retryable=True),
]
FINAL: list[object] = [
    api.UntrustedCertificateError("no connection"),
    api.BadRequestError("400"),
    api.AuthenticationError("401"),
    api.InsufficientBalanceError("402"),
    api.PermissionDeniedError("403"),
    api.ContentRefusedError("403"),
    api.ModelNotFoundError("404"),
    api.InvalidInputError("no"),
    api.InputDownloadError("no"),
    api.ProviderFailureError("no"),
    api.InsufficientCreditsError("no"),
    api.GivenUpError("no"),
    api.GenerationFailedError("failed"),
    api.ContentViolationError("no"),
    api.InvalidImageUrlError("no"),
    store.StoreRefusedError("no rights"),
    store.WrongAddressError("another region"),
    store.StoreUnfitError("no conditions"),
    store.WrongClockError("no conditions"),
    store.PreconditionFailedError("lost"),
    pipeline.InvalidKeyError("bad"),
    pipeline.KeyConflictError("other"),
    pipeline.SubmissionRejectedError("no"),
    pipeline.UnconfirmedError("who knows"),
    pipeline.VideoFailedError("failed"),
    pipeline.LedgerError("unreadable"),
    CollectionError("some"),
    AnswerError("nobody answered"),
    CalendarError("unreadable"),
    BudgetError("too much"),
    BadRowsError("not understood", summary=EMPTY_SUMMARY),
    BatchFailedError("some", summary=EMPTY_SUMMARY),
    ResolutionError("no"),
    SetupCheckError("no disk"),
    pipeline.CeilingError("too much"),
    BalanceError("too little"),
    TooManyRequestsError("512 KB"),
    media.ForbiddenUrlError("private"),
    media.ImageRefusedError("too big"),
    media.ResultExpiredError("404"),
    media.ForbiddenByHostError("403"),
    media.DownloadError("too large", retryable=False),
    TransitionError("no"),
    pipeline.SupersededError("another task"),
    pipeline.DuplicateRequestError("another key"),
    PaymentThreadDiedError("died"),
    ValueError("a bug"),
    OSError("a surprise"),
    TimeoutError(),
    KeyboardInterrupt(),
    None,
    "a result",
]


@pytest.mark.parametrize("error", TRANSIENT, ids=lambda error: type(error).__name__)
def test_transient_errors_are_retried(error: BaseException) -> None:
    assert is_transient(error)


@pytest.mark.parametrize("error", FINAL, ids=lambda error: type(error).__name__)
def test_permanent_and_unexpected_errors_are_not_retried(error: object) -> None:
    assert not is_transient(error)


def test_every_error_class_is_in_one_of_the_tables() -> None:
    bases = (api.ApixoError, store.StoreError, pipeline.PipelineError, media.MediaError)
    known = {type(error) for error in [*TRANSIENT, *FINAL]}
    abstract = {*bases, BatchError, api.ProvablyUnpaidError, api.RefusedError, api.UnclearError}

    def with_subclasses(cls: type[Any]) -> set[type[Any]]:
        return {cls}.union(*(with_subclasses(child) for child in cls.__subclasses__()))

    packages = ("apixo.", "blocks.", "flows.")
    defined = {cls for base in bases for cls in with_subclasses(base) if cls.__module__.startswith(packages)}
    assert defined - abstract <= known


@pytest.mark.parametrize(
    ("first", "delays"),
    [
        (2.0, [2, 4, 8, 16, 32]),
        (0.05, [0.05, 0.1, 0.2, 0.4, 0.8]),
        (10.0, [10, 20, 40, 60, 60]),
        (500.0, [60] * 5),
    ],
)
def test_retry_delays_double_up_to_a_minute(first: float, delays: list[float]) -> None:
    assert delays_seconds(first) == pytest.approx(delays)
    assert len(delays) == RETRIES
    assert max(delays) <= LONGEST_DELAY_SECONDS


@task
def some_task() -> None: ...


@pytest.mark.parametrize(
    ("state", "again"),
    [
        (FailedState(data=store.StoreUnavailableError("no answer")), True),
        (FailedState(data=media.DownloadError("too large", retryable=False)), False),
        (FailedState(data=ValueError("a bug")), False),
        (Completed(data="fine"), False),
    ],
)
async def test_retry_condition_depends_on_the_error_in_the_state(state: PrefectState[Any], again: bool) -> None:
    run = TaskRun.model_construct()  # type: ignore[call-arg] # it is not used
    assert await retry_transient(some_task, run, state) is again


def test_prefect_never_retries_the_paid_call_or_the_wait() -> None:
    assert steps.submit.retries == 0
    assert steps.wait.retries == 0
    for step in (steps.validate_image, steps.fetch, steps.archive):
        assert step.retries == RETRIES
        assert step.retry_condition_fn is retry_transient


def test_no_step_persists_or_caches_its_result() -> None:
    for step in (steps.validate_image, steps.submit, steps.wait, steps.fetch, steps.archive):
        assert step.persist_result is False
        assert step.cache_policy is not None
        assert step.cache_policy.compute_key(None, {"key": "a"}, {}) is None  # type: ignore[arg-type]
