"""What ``/infer`` says of the image itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from backend.api.fields import Amount
from backend.scoring.image_check import ImageCheck

Measure = Annotated[float, Field(json_schema_extra={"minimum": -1e9, "maximum": 1e9})]


class StatisticAnswer(BaseModel):
    """One statistic of an image beside its range on the good images."""

    value: Measure = Field(description="Grey levels, share, ratio or correlation.", examples=[104.2])
    low: Measure = Field(description="Smallest value of the good images.", examples=[92.1])
    high: Measure = Field(description="Largest value of the good images.", examples=[118.4])
    distance: Measure = Field(
        description="How far outside that range, in units of half of it or of a floor; negative below it, 0 inside.",
        examples=[0.0],
    )


class ImageCheckAnswer(BaseModel):
    """Whether the image can be one of this ROI at all: its light, sharpness, contrast, colour and layout."""

    verdict: Literal["ok", "unusual", "foreign"] = Field(
        description="`unusual`: the largest distance is above 1.2, a warning says what. `foreign`: above 2; it is "
        "no image of this ROI, and `ng` unless the service only warns.",
        examples=["ok"],
    )
    distance: Amount = Field(description="The largest distance, whatever its sign.", examples=[0.0])
    statistics: dict[str, StatisticAnswer] = Field(
        description="What was compared.",
        examples=[{"level": {"value": 104.2, "low": 92.1, "high": 118.4, "distance": 0.0}}],
    )

    @classmethod
    def of(cls, check: ImageCheck | None) -> ImageCheckAnswer | None:
        """Return the answer about a check, or None without one."""
        if check is None:
            return None
        statistics = {name: StatisticAnswer.model_construct(**vars(found)) for name, found in check.statistics.items()}
        return cls(verdict=check.verdict, distance=check.distance, statistics=statistics)
