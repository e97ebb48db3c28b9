"""What a video costs, by its model. Unknown prices stay unknown."""

from decimal import Decimal
from typing import Any

import pytest
from prefect.blocks.system import Secret
from pydantic import ValidationError

from blocks import ApixoApi
from blocks.prices import Price

PRICES = {"veo-3-1": Price(per_video=Decimal(3)), "kling-2-6": Price(per_second=Decimal("0.5"))}


@pytest.mark.parametrize(
    ("model", "seconds", "price"),
    [
        ("sora-2", 8, "0.8"),
        ("kling-2-6", 10, "5.0"),
        ("kling-2-6", None, None),  # without a duration, there is no price per second
        ("veo-3-1", None, "3"),
        ("veo-3-1", 8, "3"),
        ("sora-2-pro", 8, None),
        ("future-1", 8, None),
    ],
)
def test_each_model_has_its_own_price_or_none(model: str, seconds: int | None, price: str | None) -> None:
    found = api(price_per_second=Decimal("0.1"), prices=PRICES).price(model, seconds)
    assert (None if found is None else str(found)) == price


def test_price_list_overrides_the_price_per_second() -> None:
    listed = {"sora-2": Price(per_second=Decimal(2))}
    assert api(price_per_second=Decimal(1), prices=listed).price("sora-2", 4) == 8
    assert api().price("sora-2", 4) is None


@pytest.mark.parametrize(
    "fields", [{}, {"per_second": 1, "per_video": 1}, {"per_second": -1}, {"per_video": "NaN"}, {"per_minute": 1}]
)
def test_price_has_exactly_one_unit_and_is_not_negative(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Price.model_validate(fields)


def api(**fields: Any) -> ApixoApi:
    return ApixoApi(api_key=Secret(value="key"), **fields)


def test_poll_timing_follows_the_model_unless_configured() -> None:
    assert api().timing("sora-2") == (180, 10)
    assert api().timing("kling-2-6") == (60, 15)
    assert api().timing("future-1") == (180, 10)
    assert api(initial_wait_seconds=5).timing("kling-2-6") == (5, 15)
    assert api(initial_wait_seconds=5, poll_interval_seconds=1).timing("kling-2-6") == (5, 1)
