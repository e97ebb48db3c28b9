"""The paid call: claim, POST, answer, record. Nothing else in this project can pay.

Its order, step by step: "The paid call" in `docs/ledger.md`. A crash leaves no claim, a provable rejection, a task id,
or a claim that becomes `unconfirmed`. Only in the first two cases is anything resent automatically.
"""

from flows.paid_call.call import Accepted, LostRace, Outcome, PaidCall, Rejected, Unclear
from flows.paid_call.spend_guard import SpendGuard, price_needed
from flows.paid_call.thread import PaymentThread, PaymentThreadDiedError

__all__ = [
    "Accepted",
    "LostRace",
    "Outcome",
    "PaidCall",
    "PaymentThread",
    "PaymentThreadDiedError",
    "Rejected",
    "SpendGuard",
    "Unclear",
    "price_needed",
]
