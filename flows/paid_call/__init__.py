"""The paid call: claim, POST, answer, written down. Nothing else in this project can pay.

1. The limits come first: the budget, the pace of a batch, the requests per minute, and last what may be spent per day
   and per month, which is reserved for this call. They may take their time.
2. Then, in the payment thread and without another wait: the claim is written, the POST is sent, once.
3. The answer is written down before anything is logged or published. Where that takes longer than a second, the log and
   an event name the task as well, from a thread of their own.
4. The caller gets the outcome, and reports it.

A crash leaves no claim, a provable rejection, a task id, or a claim that turns `unconfirmed`. Only after the first two
is anything sent again by itself.
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
