"""Shares of a batch: every row is in one, and their limits add up to the batch's."""

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from flows.batch.calendar_rows import BatchItem, Row
from flows.batch.shares import Priced, deal

MONEY = st.decimals(0, 20, places=2)
ROWS = st.lists(st.tuples(MONEY, MONEY), max_size=30)


def priced(amounts: list[tuple[Decimal, Decimal]]) -> list[Priced]:
    return [
        Priced(Row(line=number, item=BatchItem(prompt="Dunes", id=str(number))), spent, cost)
        for number, (spent, cost) in enumerate(amounts, 1)
    ]


@given(ROWS, st.integers(1, 12))
def test_every_row_is_in_one_share_and_share_sizes_differ_by_at_most_one(
    amounts: list[tuple[Decimal, Decimal]], shards: int
) -> None:
    rows = priced(amounts)
    parts, left = deal(rows, shards, max_spend=None, spent_before=Decimal(0))
    assert left == []
    assert sorted(row.line for mine, _ in parts for row in mine) == [item.row.line for item in rows]
    lengths = [len(mine) for mine, _ in parts]
    assert max(lengths) - min(lengths) <= 1
    assert {limit for _, limit in parts} == {None}


@given(ROWS, st.integers(1, 12), MONEY, MONEY)
def test_limits_of_shares_never_add_up_to_more_than_batch_limit(
    amounts: list[tuple[Decimal, Decimal]], shards: int, elsewhere: Decimal, room: Decimal
) -> None:
    rows = priced(amounts)
    spent_before = elsewhere + sum((item.spent for item in rows), Decimal(0))
    parts, left = deal(rows, shards, max_spend=spent_before + room, spent_before=spent_before)
    of = {item.row.line: item for item in rows}
    may_pay = Decimal(0)
    for mine, limit in parts:
        spent = sum((of[row.line].spent for row in mine), Decimal(0))
        assert limit is not None
        assert limit >= spent + sum((of[row.line].cost for row in mine), Decimal(0))
        may_pay += limit - spent
    assert may_pay <= room
    dealt = {row.line for mine, _ in parts for row in mine}
    assert dealt | {row.line for row in left} == of.keys()
    assert not dealt & {row.line for row in left}


def test_rows_after_first_unaffordable_row_are_left_out_even_if_cheaper() -> None:
    rows = priced([(Decimal(0), Decimal(cost)) for cost in (4, 4, 8, 1)])
    parts, left = deal(rows, 2, max_spend=Decimal(10), spent_before=Decimal(0))
    assert [[row.line for row in mine] for mine, _ in parts] == [[1], [2]]
    assert [row.line for row in left] == [3, 4]
