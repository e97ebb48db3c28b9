"""The paid call: claim, POST, answer, record. Nothing else in this project can pay.

1. First the call waits for the limits: the budget, the pace of a batch, the requests per minute, and finally the
   ceilings per day and per month, from which its price is reserved. This may take long.
2. Then, in the payment thread and without another wait, the claim is written and the POST is sent once.
3. The answer is recorded before anything is logged or published. If that takes longer than a second, a separate thread
   also writes the task id to the log and to an event.
4. The caller gets the outcome and reports it.

A crash leaves no claim, a provable rejection, a task id, or a claim that becomes `unconfirmed`. Only in the first two
cases is anything resent automatically.
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
