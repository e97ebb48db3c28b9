"""What the user pays for videos of a model."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Price(BaseModel):
    """What a video of one model costs: by its length, or per video."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    per_second: Decimal | None = Field(default=None, ge=0, title="Per second", description="For a second of video.")
    per_video: Decimal | None = Field(default=None, ge=0, title="Per video", description="For a video of any length.")

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.per_second is None) is (self.per_video is None):
            raise ValueError("give either per_second or per_video")
        return self


def price_of(model: str, seconds: int | None, prices: Mapping[str, Price]) -> Decimal | None:
    """What a video of this model and length costs; None: there is no price, or it needs a length. Pure."""
    price = prices.get(model)
    if price is None:
        return None
    if price.per_second is None or seconds is None:
        return price.per_video
    return price.per_second * seconds
