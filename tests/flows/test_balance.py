"""The account balance, if the API provides it, and what is reported about it."""

from decimal import Decimal
from typing import Any

import pytest

from apixo import StatusClient
from blocks import ApixoApi
from blocks.prices import Price
from deployments.sandbox import SandboxServer
from flows.balance import BalanceError, check_balance, describe_balance, known_balance, shortfall
from flows.checks import check_account
from tests.apixo.wire import http, reply, serving
from tests.support import make_api
from tests.support.events import Sent


@pytest.mark.parametrize(
    ("balance", "needed", "currency", "short"),
    [
        (10, 10, "USD", False),
        (9, 10, "USD", True),
        (9, 10, None, True),
        (9, 10, "usd", True),
        (9, 10, "EUR", False),  # not comparable
        (-1, 0, None, True),
    ],
)
def test_shortfall_needs_a_lower_balance_in_a_comparable_currency(
    balance: int, needed: int, currency: str | None, short: bool
) -> None:
    assert (shortfall(Decimal(balance), Decimal(needed), currency) is not None) is short


@pytest.mark.parametrize(
    ("fields", "described"),
    [
        ({}, "74.87 USD"),
        ({"price_per_second": Decimal("0.5")}, "74.87 USD, which is 149 s of sora-2"),
        ({"price_per_second": Decimal("0.5"), "currency": "EUR"}, "74.87 USD"),
        ({"prices": {"sora-2": Price(per_video=Decimal(1))}}, "74.87 USD, which is 74 videos of sora-2"),
        (
            {
                "price_per_second": Decimal("0.05"),
                "prices": {"veo-3-1": Price(per_video=Decimal(2)), "kling-2-6": Price(per_second=Decimal("0.1"))},
            },
            "74.87 USD, which is 1,497 s of sora-2 or 37 videos of veo-3-1 or 748 s of kling-2-6",
        ),
        ({"price_per_second": Decimal(0)}, "74.87 USD"),
    ],
)
def test_balance_description_includes_how_much_video_it_buys(
    sandbox: SandboxServer, fields: dict[str, Any], described: str
) -> None:
    assert describe_balance(Decimal("74.87"), make_api(sandbox, **fields)) == described


async def test_account_check_reports_balance_and_warns_below_threshold(api: ApixoApi) -> None:
    async with api.status_client() as client:
        found = await check_account(client, api)
        low = api.model_copy(update={"balance_warning_below": Decimal(100_000)})
        warned = await check_account(client, low)
    assert (found.name, found.outcome, found.detail) == ("balance", "ok", "10000.00 USD")
    assert (warned.outcome, warned.detail) == ("warning", "10000.00 USD. Top up the APIXO account.")


NO_BALANCE = [
    http(404, "{}"),
    http(501, "<html>"),
    http(503, ""),
    http(403, {"code": 403, "message": "no", "data": None}),
    http(200, {"code": 200, "message": "success", "data": "74.87"}),
    http(200, "junk"),
]


@pytest.mark.parametrize("answer", NO_BALANCE, ids=range(len(NO_BALANCE)))
async def test_missing_balance_is_reported_and_blocks_nothing(answer: bytes, api: ApixoApi, sent: Sent) -> None:
    async with serving(reply(answer)) as server:
        strict = api.model_copy(update={"require_balance": True, "balance_warning_below": Decimal(100_000)})
        async with StatusClient("key", base_url=server.url, retry_delay_seconds=0.01) as client:
            assert await known_balance(client) is None
            assert await check_balance(client, strict, Decimal(50), batch_key="k") is None
            unknown = await check_account(client, strict)
            assert unknown.outcome == "warning"
            assert "unknown: the API does not provide it. So require_balance and" in unknown.detail
            assert (await check_account(client, api)).outcome == "ok"
        assert len(server.requests) == 4  # one request each
    assert sent.all() == []


async def test_insufficient_required_balance_raises_error(api: ApixoApi) -> None:
    strict = api.model_copy(update={"require_balance": True})
    async with api.status_client() as client:
        assert await check_balance(client, strict, Decimal(10_000), batch_key="k") is None
        with pytest.raises(BalanceError, match=r"has 10000\.00 USD left, .* cost 10001\. Nothing was submitted"):
            await check_balance(client, strict, Decimal(10_001), batch_key="k")
