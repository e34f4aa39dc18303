"""A ROI's calibration: its threshold, with all that makes the scores that are compared with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from typing import Any, Literal, get_args

from backend.thresholds import (
    MARGIN_RANGE,
    OK_PERCENTILE,
    Bounds,
    Method,
    Threshold,
    false_alarm_bounds,
    manual_threshold,
    set_threshold,
)

__all__ = [
    "MARGIN_RANGE",
    "OK_PERCENTILE",
    "OWN_SHAPES",
    "SCORE_MODES",
    "Bounds",
    "Calibration",
    "Method",
    "ScoreMode",
    "ScoreRule",
    "ScoresFrom",
    "Threshold",
    "calibrate",
    "false_alarm_bounds",
    "manual_threshold",
    "set_threshold",
]

ScoreMode = Literal["percentile", "top_mean", "max", "area"]
SCORE_MODES: tuple[str, ...] = get_args(ScoreMode)
ScoresFrom = Literal["stored", "request", "dataset"]

OWN_SHAPES: Mapping[str, Any] = {"kind": "own"}


@dataclass(frozen=True, kw_only=True)
class ScoreRule:
    """How an anomaly map becomes an image score.

    Attributes:
        mode: The statistic of the map.
        percentile: Of the map, for ``percentile`` and ``top_mean``; in (0, 100].
        blur_sigma: Standard deviation of the map's Gaussian blur, px of the image; 0 for none.
        area_mm2_thr: Area that counts, mm²: smaller regions are dropped, and for ``area`` it makes the score.
    """

    mode: ScoreMode
    percentile: float
    blur_sigma: float
    area_mm2_thr: float


@dataclass(frozen=True, kw_only=True)
class Calibration(Threshold):
    """A ROI's threshold with the settings that its scores were measured with.

    Attributes:
        ok_percentile: The percentile of the OK scores that was asked for.
        score_mode: The statistic of the map that is the image score.
        score_percentile: Percentile of the map, for ``percentile`` and ``top_mean``.
        blur_sigma: Blur of the map, px of the image.
        area_mm2_thr: Regions below it are dropped, mm²; for ``area`` it makes the score.
        ok_scores_from: ``stored`` leave-one-image-out scores, those of the ``request``, or of the ``dataset``.
        ng_scores_from: ``stored`` bad images, the ``request``, or the ``dataset``; None without NG scores.
        memory_checksum: The memory whose scores these are.
        ok_images: Digests of the good images of the ``dataset``.
        ng_images: Digests of the bad images, ``stored`` or of the ``dataset``.
        shape: The area that its scores are of: None for all that was learned; JSON object of a shape in pixels of the
            memory's ``placement``; ``OWN_SHAPES`` where images of the data set have different shapes of their own.
    """

    ok_percentile: float
    score_mode: ScoreMode
    score_percentile: float
    blur_sigma: float
    area_mm2_thr: float
    mm_per_px: float
    ok_scores_from: ScoresFrom
    ng_scores_from: ScoresFrom | None = None
    memory_checksum: str
    ok_images: tuple[str, ...] = ()
    ng_images: tuple[str, ...] = ()
    shape: Mapping[str, Any] | None = None

    @property
    def rule(self) -> ScoreRule:
        """How maps become the scores that the threshold is compared with."""
        return ScoreRule(
            mode=self.score_mode,
            percentile=self.score_percentile,
            blur_sigma=self.blur_sigma,
            area_mm2_thr=self.area_mm2_thr,
        )

    @property
    def rests_on_sent_scores(self) -> bool:
        """Whether scores that a caller sent have set the threshold, so that nobody here can measure them again."""
        return self.method != "manual" and "request" in (self.ok_scores_from, self.ng_scores_from)

    def to_fields(self) -> dict[str, Any]:
        """Return the calibration as a flat JSON object; ``from_fields`` reads it back."""
        fields = asdict(self)
        fields.update(fields.pop("bounds"))
        for name in ("warnings", "ok_images", "ng_images"):
            fields[name] = list(fields[name])
        return fields

    def summary(self) -> dict[str, Any]:
        """Return ``to_fields`` without the images, of which there may be thousands: what is kept of each decision."""
        return {name: value for name, value in self.to_fields().items() if name not in ("ok_images", "ng_images")}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Calibration:
        """Return the calibration of a JSON object that ``to_fields`` made.

        Raises:
            KeyError, TypeError, ValueError: If a field is missing or of another type.
        """
        values = dict(fields)
        values["bounds"] = Bounds(**{name: float(values.pop(name)) for name in Bounds.__dataclass_fields__})
        for name in ("warnings", "ok_images", "ng_images"):
            values[name] = tuple(values[name])
        calibration = cls(**{field.name: values.pop(field.name) for field in dataclass_fields(cls)}, **values)
        if calibration.score_mode not in SCORE_MODES or not math.isfinite(float(calibration.threshold)):
            raise ValueError("not a calibration")
        return calibration


def calibrate(ok_scores: Sequence[float], ng_scores: Sequence[float] | None = None, percentile: float = 99) -> float:
    """Return the threshold that ``set_threshold`` sets."""
    return set_threshold(ok_scores, ng_scores, percentile=percentile).threshold
