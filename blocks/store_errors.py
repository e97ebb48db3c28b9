"""All errors of the object store.

```
StoreError                  base of all
├── StoreUnavailableError   no answer, or 5xx: try again. A write may have been applied anyway
├── StoreRefusedError       the store rejected it: wrong keys, no permission, no such bucket
│   └── WrongAddressError   it requires another region, or the bucket in front of its host name
├── StoreUnfitError         the store ignores conditional writes, so it cannot keep the ledger
│   └── WrongClockError         its clock and that of this machine differ
└── PreconditionFailedError a conditional write lost: another process wrote first
```
"""

from apixo import SoraError


class StoreError(SoraError):
    """Base of all errors of the object store.

    Attributes:
        message: what happened and what to do next. Never a URL, which may be signed.
        code: the S3 error code, such as `NoSuchBucket`; empty without an answer.
        retryable: whether repeating the call later can help.
    """

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class StoreUnavailableError(StoreError):
    """No complete answer, or a 5xx. A write may have been applied: read it back."""

    retryable = True


class StoreRefusedError(StoreError):
    """The store rejected the call for good: wrong keys, missing permissions, no such bucket."""


class WrongAddressError(StoreRefusedError):
    """The store is there, but requires another form of request.

    Attributes:
        region: the one to sign for; empty: the region is not the problem.
        virtual_host: whether the bucket's name must be put in front of the host.
    """

    def __init__(self, message: str, *, code: str = "", region: str = "", virtual_host: bool = False) -> None:
        super().__init__(message, code=code)
        self.region = region
        self.virtual_host = virtual_host


class StoreUnfitError(StoreError):
    """The store accepts conditional writes but ignores their condition. Two workers could then both pay."""


class WrongClockError(StoreUnfitError):
    """The store's clock and this machine's differ by more than properly set clocks do."""


class PreconditionFailedError(StoreError):
    """A conditional write found the object changed (or created, or removed). Nothing was written."""
