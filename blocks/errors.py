"""What can go wrong with the object store.

```
StoreError                  base of all
├── StoreUnavailableError   no answer, or 5xx: try again. A write may have been applied all the same
├── StoreRefusedError       the store said no: wrong keys, no rights, no such bucket
│   └── WrongAddressError   it wants another region, or the bucket in front of its name, and takes it then
├── StoreUnfitError         the store ignores conditional writes, so it cannot keep the ledger
│   └── WrongClockError         its clock and that of this machine differ
└── PreconditionFailedError a conditional write lost: someone else wrote first
```
"""

from apixo import SoraError


class StoreError(SoraError):
    """Base of all errors of the object store.

    Attributes:
        message: what happened and what to do next. Never an address: those are signed.
        code: the S3 error code, such as `NoSuchBucket`; empty without an answer.
        object_name: which object it was about; empty where it was about none.
        retryable: whether repeating the call later can help.
    """

    def __init__(self, message: str, *, code: str = "", object_name: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.object_name = object_name


class StoreUnavailableError(StoreError):
    """No whole answer, or an answer of 5xx. A write may have been applied: read it back."""

    retryable = True


class StoreRefusedError(StoreError):
    """The store answered with a no that stays: wrong keys, missing rights, no such bucket."""


class WrongAddressError(StoreRefusedError):
    """The store is there, and wants to be asked in another way.

    Attributes:
        region: the one to sign for; empty: the region is not what is wrong.
        virtual_host: whether the bucket's name has to stand in front of the host.
    """

    def __init__(
        self, message: str, *, code: str = "", object_name: str = "", region: str = "", virtual_host: bool = False
    ) -> None:
        super().__init__(message, code=code, object_name=object_name)
        self.region = region
        self.virtual_host = virtual_host


class StoreUnfitError(StoreError):
    """The store accepts conditional writes without keeping their condition. Two workers could then both pay."""


class WrongClockError(StoreUnfitError):
    """The store's clock and that of this machine differ by more than a set clock does."""


class PreconditionFailedError(StoreError):
    """A conditional write found the object changed (or there, or gone). Nothing was written."""
