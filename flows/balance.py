"""The balance of the APIXO account: whether it is enough, and what it buys."""

import asyncio
from decimal import Decimal
from typing import Final

from apixo import ApixoError, StatusClient
from blocks import ApixoApi
from flows.record.pipeline_errors import PipelineError
from flows.signals.events import emit_balance_low
from flows.signals.progress import run_logger
from flows.wording import counted

ANSWER_SECONDS: Final = 10.0
"""The longest wait for the balance: it is a convenience, and not every API provides it."""
BALANCE_CURRENCY: Final = "USD"
"""APIXO: the balance is in USD."""


class BalanceError(PipelineError):
    """The balance is less than the batch costs, and the API block requires enough. Nothing was submitted."""


async def known_balance(client: StatusClient) -> Decimal | None:
    """The account's balance; None if the API does not provide it. One free request."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await client.balance_once()
    except (ApixoError, TimeoutError):
        return None


async def check_balance(client: StatusClient, api: ApixoApi, needed: Decimal, *, batch_key: str) -> str | None:
    """At the start of a batch, returns a warning if the balance is too low, else None.

    Args:
        needed: the cost of the videos that are not paid yet, as far as their prices are known.

    Raises:
        BalanceError: the balance is less than that, and the block requires enough. Nothing was submitted.
    """
    if not needed and api.balance_warning_below is None:
        return None
    balance = await known_balance(client)
    if balance is None:
        return None
    if api.balance_warning_below is not None and balance < api.balance_warning_below:
        run_logger().warning("The APIXO account has %.2f USD left, less than %s.", balance, api.balance_warning_below)
        emit_balance_low(balance, api.balance_warning_below)
    problem = shortfall(balance, needed, api.currency)
    if problem is not None and api.require_balance:
        raise BalanceError(f"{problem} Nothing was submitted: top it up, or turn off require_balance.", key=batch_key)
    return problem


def shortfall(balance: Decimal, needed: Decimal, currency: str | None) -> str | None:
    """A warning if the balance is not enough; None if it is, or if prices are in another currency. Pure."""
    if (currency or BALANCE_CURRENCY).upper() != BALANCE_CURRENCY or balance >= needed:
        return None
    return f"The APIXO account has {balance:.2f} USD left, and the videos of this batch cost {needed}."


def describe_balance(balance: Decimal, api: ApixoApi) -> str:
    """The balance, and what it buys with each model whose price is known. Pure."""
    left, buys = max(balance, Decimal(0)), list[str]()
    for model, price in api.price_list.items():
        if price.per_second:
            buys.append(f"{int(left / price.per_second):,} s of {model}")
        elif price.per_video:
            buys.append(f"{counted(int(left / price.per_video), 'video')} of {model}")
    if not buys or (api.currency or BALANCE_CURRENCY).upper() != BALANCE_CURRENCY:
        return f"{balance:.2f} USD"
    return f"{balance:.2f} USD, which is {' or '.join(buys)}"
