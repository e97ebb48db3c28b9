"""What can go wrong with a generation, beyond the API (`apixo.errors`), the store (`blocks.store_errors`) and the media
(`flows.media.media_errors`).

```
PipelineError             base of all
├── InvalidKeyError       the key is invalid
├── KeyConflictError      the key is known, with a different request
├── SubmissionRejectedError   the provider rejected the request: nothing was paid
├── DuplicateRequestError     the same request was generated under another key, and duplicates are rejected
├── CeilingError          it would exceed what may be spent per day or month: nothing was paid
├── UnconfirmedError      it is unknown whether it was paid. A callback or a user resolves it
├── VideoFailedError      the provider accepted the task and reports it as failed
├── ArchiveMismatchError  what was read back differs from what was written
└── LedgerError           the record cannot be read or written
    └── TransitionError   the record has changed meanwhile and no longer allows this
        └── SupersededError   the generation continues with a different task than the step's
```
"""

from apixo import SoraError


class PipelineError(SoraError):
    """Base of all errors of a generation.

    Attributes:
        message: what happened to which key, and what to do next.
        key: the generation's key.
        task_id: the provider's task, if one is known.
        retryable: whether the same step may be retried automatically.
    """

    def __init__(self, message: str, *, key: str = "", task_id: str | None = None) -> None:
        super().__init__(message)
        self.key = key
        self.task_id = task_id


class InvalidKeyError(PipelineError, ValueError):
    """The key is invalid."""


class KeyConflictError(PipelineError):
    """The key is known, with a different request. One key is one video."""


class DuplicateRequestError(PipelineError):
    """The same request was generated before, under another key, and the caller rejects duplicates. Nothing was sent."""


class SubmissionRejectedError(PipelineError):
    """The provider rejected the request, or gave no status of the failed task that would be paid for again. Nothing was
    paid.
    """


class CeilingError(PipelineError):
    """The paid call was not made: it would exceed what may be spent per day or month. Nothing was claimed or sent."""


class UnconfirmedError(PipelineError):
    """The request was, or may have been, sent without a clear answer. It is not resent until this is resolved."""


class VideoFailedError(PipelineError):
    """The provider accepted the task and reports it as failed.

    Attributes:
        fail_code: the provider's `failCode`, raw.
        permanent: the same request cannot succeed.
    """

    def __init__(
        self, message: str, *, key: str = "", task_id: str | None = None, fail_code: str = "", permanent: bool = False
    ) -> None:
        super().__init__(message, key=key, task_id=task_id)
        self.fail_code = fail_code
        self.permanent = permanent


class ArchiveMismatchError(PipelineError):
    """An object read back from the archive is not what was written."""

    retryable = True


class LedgerError(PipelineError):
    """The record of a generation cannot be read or written."""


class TransitionError(LedgerError):
    """The record's state does not allow a change, because the record has changed since it was read.

    For example, a user has named another task, or there are two contradictory reports about one task.
    """


class SupersededError(TransitionError):
    """The generation continues with a different task than the step's, such as one that a user has named meanwhile."""
