"""The shares of a batch: every row is in one share, and their limits never exceed the batch's limit."""

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
    parts, left_out = deal(rows, shards, max_spend=None, spent_before=Decimal(0))
    assert left_out == []
    assert sorted(row.line for share_rows, _ in parts for row in share_rows) == [item.row.line for item in rows]
    lengths = [len(share_rows) for share_rows, _ in parts]
    assert max(lengths) - min(lengths) <= 1
    assert {limit for _, limit in parts} == {None}


@given(ROWS, st.integers(1, 12), MONEY, MONEY)
def test_limits_of_shares_never_add_up_to_more_than_batch_limit(
    amounts: list[tuple[Decimal, Decimal]], shards: int, spent_elsewhere: Decimal, remaining: Decimal
) -> None:
    rows = priced(amounts)
    spent_before = spent_elsewhere + sum((item.spent for item in rows), Decimal(0))
    parts, left_out = deal(rows, shards, max_spend=spent_before + remaining, spent_before=spent_before)
    item_of_line = {item.row.line: item for item in rows}
    payable = Decimal(0)
    for share_rows, limit in parts:
        spent = sum((item_of_line[row.line].spent for row in share_rows), Decimal(0))
        assert limit is not None
        assert limit >= spent + sum((item_of_line[row.line].cost for row in share_rows), Decimal(0))
        payable += limit - spent
    assert payable <= remaining
    dealt = {row.line for share_rows, _ in parts for row in share_rows}
    assert dealt | {row.line for row in left_out} == item_of_line.keys()
    assert not dealt & {row.line for row in left_out}


def test_rows_after_first_unaffordable_row_are_left_out_even_if_cheaper() -> None:
    rows = priced([(Decimal(0), Decimal(cost)) for cost in (4, 4, 8, 1)])
    parts, left_out = deal(rows, 2, max_spend=Decimal(10), spent_before=Decimal(0))
    assert [[row.line for row in share_rows] for share_rows, _ in parts] == [[1], [2]]
    assert [row.line for row in left_out] == [3, 4]
