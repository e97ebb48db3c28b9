"""What the account of an API key has left."""

import math
from decimal import Decimal

from apixo.errors import UnexpectedReplyError
from apixo.redaction import excerpt
from apixo.replies import Envelope


def parse_balance(envelope: Envelope) -> Decimal:
    """The balance: a bare number, as APIXO documents it.

    Raises:
        UnexpectedReplyError: it is none.
    """
    amount = envelope.data
    if isinstance(amount, int | float) and not isinstance(amount, bool) and math.isfinite(amount):
        return Decimal(str(amount))
    shown = excerpt(repr(amount).encode("utf-8", "replace"))
    raise UnexpectedReplyError(f"APIXO gave no balance: {shown!r}.", code=200)
