"""The spending limit of a batch: it stops before the call that would exceed the limit."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apixo import VideoRequest
from blocks.prices import Price
from flows.batch.budget import Budget, BudgetError
from flows.record import superseded_tasks
from flows.record.generation import Generation
from flows.record.payments import full_cost, paid_attempts, spent_on
from tests.flows.record import changes
from tests.flows.record.changes import LATER, allow, fail, lose, reject, resolve, submit

PRICE = Decimal("0.10")
PRICES = {"sora-2": Price(per_second=PRICE)}


def claimed(previous: Generation | None = None) -> Generation:
    return changes.claimed(previous, request=VideoRequest(prompt="Dunes", duration=8))


def submitted(task_id: str = "t", previous: Generation | None = None) -> Generation:
    return submit(claimed(previous), task_id)


def failed() -> Generation:
    return fail(submitted(), "t")


def late() -> Generation:
    """Attempt 1 was given up, attempt 2 was rejected, and then the answer to attempt 1 arrived after all."""
    return submit(reject(claimed(allow(lose(claimed())))), "t", attempt_number=1)


@pytest.mark.parametrize(
    ("generation", "paid"),
    [
        pytest.param(None, 0, id="nothing"),
        pytest.param(claimed(), 1, id="a claim without an answer may have been paid"),
        pytest.param(reject(claimed()), 0, id="a rejection is provably unpaid"),
        pytest.param(submitted(), 1, id="submitted"),
        pytest.param(failed(), 1, id="a failure may have been charged"),
        pytest.param(submitted("u", failed()), 2, id="a failure and a second attempt"),
        pytest.param(late(), 1, id="one attempt with a late answer and one rejected"),
    ],
)
def test_paid_and_possibly_paid_attempts_count_as_spent(generation: Generation | None, paid: int) -> None:
    assert paid_attempts(generation) == paid
    assert spent_on([generation], PRICES) == paid * 8 * PRICE
    assert spent_on([generation], {}) == 0


def test_call_that_would_exceed_limit_is_rejected_and_so_are_all_later_keys() -> None:
    budget = Budget(PRICES, max_spend=Decimal("1.2"))
    budget.reserve("a", 8)
    budget.reserve("b", 4)
    with pytest.raises(BudgetError, match=r"c was not submitted: max_spend is 1\.2.*come to 1\.60"):
        budget.reserve("c", 4)
    budget.release("a")
    with pytest.raises(BudgetError, match="d was not submitted"):
        budget.reserve("d", 4)
    budget.reserve("b", 4)  # already reserved: a retry of the same video is not another payment
    assert budget.spent == Decimal("0.40")


def test_spending_exactly_the_limit_is_allowed() -> None:
    budget = Budget(PRICES, max_spend=Decimal("0.8"), spent_before=Decimal("0.4"))
    budget.reserve("a", 4)
    with pytest.raises(BudgetError):
        budget.reserve("b", 4)


def test_limit_without_price_raises_error_naming_the_setting() -> None:
    with pytest.raises(BudgetError, match="price_per_second"):
        Budget({}, max_spend=Decimal(1))


def test_without_price_nothing_is_counted_or_rejected() -> None:
    budget = Budget({})
    budget.reserve("a", 12)
    assert budget.spent is None
    assert budget.price(4) is None


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from([4, 8, 12]))),
    st.decimals(min_value=0, max_value=20, places=2),
    st.decimals(min_value=0, max_value=20, places=2),
)
def test_limit_is_never_exceeded_by_any_sequence_of_requests(
    requested: list[tuple[str, int]], max_spend: Decimal, before: Decimal
) -> None:
    budget = Budget(PRICES, max_spend=max_spend, spent_before=before)
    for key, seconds in requested:
        try:
            budget.reserve(key, seconds)
        except BudgetError:
            continue
        assert budget.spent is not None
        assert before + budget.spent <= max_spend


DEAR = {"kling-3-0-turbo": Price(per_second=Decimal(1)), "veo-3-1": Price(per_video=Decimal(3))}


def test_fallback_replaces_reservation_of_previous_model() -> None:
    budget = Budget(PRICES | DEAR, max_spend=Decimal(5))
    budget.reserve("a", 4)
    budget.reserve("a", 4, "kling-3-0-turbo")
    assert budget.spent == 4
    budget.reserve("a", 4)  # a retry of its steps starts with the requested model again
    assert budget.spent == Decimal("0.40")
    budget.reserve("b", None, "veo-3-1")
    with pytest.raises(BudgetError, match=r"the batch would come to 7\.00"):
        budget.reserve("a", 4, "kling-3-0-turbo")
    assert budget.spent == Decimal("3.40")
    budget.reserve("a", 4)  # closed to new keys, but not to a key with a reservation
    with pytest.raises(BudgetError):
        budget.reserve("c", 4)


def test_limit_requires_price_of_every_model_that_may_be_used() -> None:
    with pytest.raises(BudgetError, match="a price of grok-video, hailuo-2-3"):
        Budget(PRICES | DEAR, models=["grok-video", "hailuo-2-3"], max_spend=Decimal(1))
    Budget(DEAR, models=["veo-3-1"], max_spend=Decimal(1))
    with pytest.raises(BudgetError, match="with kling-3-0-turbo it has none"):
        Budget(DEAR, models=list(DEAR), max_spend=Decimal(1)).reserve("a", None, "kling-3-0-turbo")


def test_payments_count_at_recorded_price_or_else_at_current_price_of_their_model() -> None:
    request = VideoRequest(prompt="Dunes", duration=8, fallback_models=["kling-3-0-turbo"])
    first = changes.claimed(request=request, price=Decimal(7), currency="USD")
    second = changes.claimed(fail(submit(first)), request=request, model="kling-3-0-turbo")
    assert spent_on([second], PRICES | DEAR) == 7 + 8
    assert spent_on([second], {}) == 7


def test_full_cost_requires_price_of_every_payment() -> None:
    failed_before = submitted("u", failed())
    assert full_cost(failed_before, PRICES) == 2 * 8 * PRICE
    assert full_cost(failed_before, {"sora-2": Price(per_video=Decimal(3))}) == 6
    assert full_cost(failed_before, DEAR) is None
    first = failed_before.attempts[0].model_copy(update={"price": Decimal(7)})
    half_known = failed_before.model_copy(update={"attempts": (first, *failed_before.attempts[1:])})
    assert full_cost(half_known, PRICES) == 7 + 8 * PRICE
    assert full_cost(half_known, {}) is None


def test_recorded_price_of_zero_is_a_price() -> None:
    free = submitted("t")
    free = free.model_copy(update={"attempts": (free.attempt.model_copy(update={"price": Decimal(0)}),)})
    assert full_cost(free, PRICES) == spent_on([free], PRICES) == 0


def test_each_superseded_task_is_a_payment() -> None:
    found = submitted("t")
    for number in (2, 3):
        found = resolve(found, f"t{number}")
        found = superseded_tasks.also_taken(found, attempt_number=1, task_id=f"u{number}", now=LATER)
    assert found.task_ids == {"t", "u2", "u3", "t3"}  # t2 was a user's mistake, which the name t3 corrected
    assert paid_attempts(found) == 4


def test_payment_by_another_run_counts_toward_limit_but_not_as_spent_by_this_run() -> None:
    budget = Budget(PRICES, max_spend=Decimal("1.2"))
    budget.reserve("a", 4)
    budget.lose("a")
    assert budget.spent == 0
    budget.reserve("b", 4)
    with pytest.raises(BudgetError, match=r"would come to 1\.60"):
        budget.reserve("c", 8)
    assert budget.spent == 4 * PRICE
    budget.reserve("a", 4)  # the other run was rejected, so this run pays
    assert budget.spent == 8 * PRICE
    budget.pay("a")
    budget.pay("b")
    assert budget.spent == 8 * PRICE
