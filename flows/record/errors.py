"""What can go wrong with a generation, beyond the API (`apixo.errors`), the store (`blocks.errors`) and the media
(`flows.media.errors`).

```
PipelineError             base of all
├── InvalidKeyError       the key is not one the ledger takes
├── KeyConflictError      the key is known, with a different request
├── SubmissionRejectedError   the provider did not take the request: nothing was paid
├── DuplicateRequestError     the same request was generated under another key, and duplicates are refused
├── CeilingError          it would exceed what may be spent per day or month: nothing was paid
├── UnconfirmedError      paid or not: nobody can know yet. A callback or a person resolves it
├── VideoFailedError      the provider took the task and reports it as failed
├── ArchiveMismatchError  what was read back differs from what was written
└── LedgerError           the record cannot be read or written
    └── TransitionError   the record has changed meanwhile and does not allow this
        └── SupersededError   the generation goes on with another task than the one a step works for
```
"""

from apixo import SoraError


class PipelineError(SoraError):
    """Base of all errors of a generation.

    Attributes:
        message: what happened to which key, and what to do next.
        key: the generation's key.
        task_id: the provider's task, where one is known.
        retryable: whether the same step may be tried again by itself.
    """

    def __init__(self, message: str, *, key: str = "", task_id: str | None = None) -> None:
        super().__init__(message)
        self.key = key
        self.task_id = task_id


class InvalidKeyError(PipelineError, ValueError):
    """The key is not one the ledger takes."""


class KeyConflictError(PipelineError):
    """The key is known, with a different request. One key is one video."""


class DuplicateRequestError(PipelineError):
    """The same request was generated before, under another key, and the caller refuses duplicates. Nothing was sent."""


class SubmissionRejectedError(PipelineError):
    """The provider did not take the request, in the last try of possibly several. Nothing was paid."""


class CeilingError(PipelineError):
    """The paid call was not made: it would exceed what may be spent per day or month. Nothing was claimed or sent."""


class UnconfirmedError(PipelineError):
    """The request was sent, or may have been, and no clear answer came. It is not sent again until this is resolved."""


class VideoFailedError(PipelineError):
    """The provider took the task and reports it as failed.

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
    """A change that the state of a record does not allow: the record is not what its writer took it for any more.

    A person has named another task meanwhile, or two things were said of one task.
    """


class SupersededError(TransitionError):
    """The generation goes on with another task than the one a step works for: a person has named it meanwhile."""
