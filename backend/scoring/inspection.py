"""What was found on one image: what counts, how the map becomes a score, and what the score is held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from backend.calib import Calibration, ScoreRule
from backend.errors import ShapeOutsideImage
from backend.imaging.placement import Placement
from backend.memory_bank.bank import MemoryBank
from backend.roi_mask import Shape, check_covers_cell, shape_mask
from backend.scoring.agreement import contradictions, regions_of
from backend.scoring.anomaly_map import anomaly_map, heatmap
from backend.scoring.image_check import ImageCheck
from backend.scoring.image_score import image_score, image_scores
from backend.scoring.leave_one_out import learned_mask
from backend.scoring.overlay import overlay
from backend.scoring.regions import Region

Decision = Literal["ok", "ng"]
RejectReason = Literal["defect", "image"]

_RAISED_BY = 1.01
"""What a threshold is multiplied by for the score of an image that is none of the ROI: enough for whoever rounds."""

_LEAST_RAISED = 1e-3
"""The same for a threshold of 0."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was found on one image.

    Attributes:
        measured_score: The statistic of the map; larger is more anomalous; in [0, 2].
        calibration: What the score was judged by; None when the ROI is not calibrated.
        map: [H, W] float32 anomaly map in pixels of the uploaded image; 0 outside the mask.
        mask: [H, W] bool, the pixels that count.
        regions: See ``regions_of``; empty when not calibrated.
        warnings: What is strange about the image, what is weak about the threshold, and where the regions and the
            decision say different things.
        image_check: Whether it can be an image of the ROI; None where that is not checked.
        rejects_images: Whether an image that is none is ``ng``, whatever its score.
        heatmap_full_scale: The map value that the heat map shows as 255.
        params: Facts about how this came about, JSON types.
        image_bgr: [H, W, 3] uint8, the image; None where nobody has given it.
    """

    measured_score: float
    calibration: Calibration | None
    map: NDArray[np.float32] = field(compare=False)
    mask: NDArray[np.bool_] = field(compare=False)
    regions: tuple[Region, ...]
    warnings: tuple[str, ...] = ()
    image_check: ImageCheck | None = None
    rejects_images: bool = False
    grid_hw: tuple[int, int]
    heatmap_full_scale: float
    params: Mapping[str, Any]
    timings_ms: Mapping[str, float] = field(default_factory=dict, compare=False)
    image_bgr: NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)

    def with_image_check(self, check: ImageCheck, *, rejects: bool) -> Inspection:
        """Return the inspection with what is strange about its image, which decides where images are rejected."""
        warnings = (check.sentence, *self.warnings) if check.sentence else self.warnings
        return replace(self, image_check=check, rejects_images=rejects, warnings=warnings)

    @property
    def threshold(self) -> float | None:
        """Scores above it are ``ng``; None without a calibration."""
        return None if self.calibration is None else self.calibration.threshold

    @property
    def is_foreign(self) -> bool:
        """Whether it is rejected because it is no image of the ROI."""
        foreign = self.image_check is not None and self.image_check.verdict == "foreign"
        return foreign and self.rejects_images and self.calibration is not None

    @property
    def score(self) -> float:
        """The measured score; above the threshold for an image that is none, so that no client takes it for good."""
        if self.calibration is None or not self.is_foreign:
            return self.measured_score
        return max(self.measured_score, self.calibration.threshold * _RAISED_BY, _LEAST_RAISED)

    @property
    def decision(self) -> Decision | None:
        """``ok``, ``ng``, or None without a calibration."""
        if self.calibration is None:
            return None
        return "ng" if self.score > self.calibration.threshold else "ok"

    @property
    def reject_reason(self) -> RejectReason | None:
        """Why it is ``ng``; None where it is not."""
        if self.decision != "ng":
            return None
        return "image" if self.is_foreign else "defect"

    @property
    def heatmap(self) -> NDArray[np.uint8]:
        """[H, W] uint8: 0 = distance 0 or outside the mask, 128 = the threshold, 255 = twice the threshold or more."""
        return heatmap(self.map, self.heatmap_full_scale)

    @property
    def overlay(self) -> NDArray[np.uint8]:
        """[H, W, 3] uint8 BGR: the image with map and regions drawn.

        Raises:
            ValueError: If the image was not given.
        """
        if self.image_bgr is None:
            raise ValueError("an overlay needs the image")
        return overlay(self.image_bgr, self.heatmap, self.mask, self.regions)

    def score_under(self, rule: ScoreRule) -> float:
        """Return the score that the map has under a rule; its blur is that of the memory."""
        return image_score(self.map, self.mask, rule, mm_per_px=self.params["mm_per_px"])


@dataclass(frozen=True, kw_only=True)
class ScoringTerms:
    """What an inspection is measured and judged by.

    Attributes:
        calibration: Judges the score; None gives a score without a decision.
        is_stale: There is a calibration, but only of another memory.
        rule: How the map becomes a score.
        k: Neighbours that a distance is the mean of.
        warnings: What is weak about the threshold.
    """

    calibration: Calibration | None
    is_stale: bool
    rule: ScoreRule
    k: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """Values in place of a ROI's own; None leaves the own one.

    Attributes:
        k: Neighbours that a distance is the mean of. Another one than the memory's puts the score on another scale than
            the threshold, and so gives no decision.
        blur_sigma: Blur of the map, px; another one than the ROI's gives no decision either.
        score_percentile: Percentile of the map that is the score, where no calibration judges it.
        area_mm2_thr: Area that counts, mm², where no calibration judges the score.
    """

    k: int | None = None
    blur_sigma: float | None = None
    score_percentile: float | None = None
    area_mm2_thr: float | None = None


NO_OVERRIDES = Overrides()


def rule_in_force(bank: MemoryBank, last: Calibration | None) -> ScoreRule:
    """Return how a ROI's maps become scores: as its last calibration says, blurred as its memory says.

    ``last`` may be of another memory.
    """
    rule = bank.options.rule
    return rule if last is None else replace(last.rule, blur_sigma=rule.blur_sigma)


def scoring_terms(
    bank: MemoryBank, calibration: Calibration | None, last: Calibration | None, overrides: Overrides
) -> ScoringTerms:
    """Return what an inspection is measured and judged by.

    Args:
        bank: The memory.
        calibration: The one that belongs to the memory.
        last: That one, or else the newest of another memory: set aside, it still says what its successor's scores are
            to be.
        overrides: What a caller asks for.
    """
    is_stale = calibration is None and last is not None
    own, own_k = rule_in_force(bank, last), bank.options.k
    k = overrides.k or own_k
    blur_sigma = own.blur_sigma if overrides.blur_sigma is None else overrides.blur_sigma
    if k != own_k or blur_sigma != own.blur_sigma:
        calibration = None
    rule = replace(own, blur_sigma=blur_sigma)
    if calibration is None:
        rule = replace(
            rule,
            percentile=overrides.score_percentile or own.percentile,
            area_mm2_thr=own.area_mm2_thr if overrides.area_mm2_thr is None else overrides.area_mm2_thr,
        )
    return ScoringTerms(calibration=calibration, is_stale=is_stale, rule=rule, k=k)


def inspected_mask(shape: Shape | None, bank: MemoryBank, image_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels [H, W] bool of an image that a shape of a request covers and that the ROI has learned.

    Raises:
        ShapeOutsideImage: If there is none.
        ShapeTooSmall: If they are less than one patch cell, and not all that was learned.
    """
    mask = mask_within(shape, bank, image_hw)
    if shape is not None and not np.array_equal(mask, learned_mask(bank, image_hw)):
        check_covers_cell(shape, mask, bank.placement.grid_hw)
    return mask


def mask_within(shape: Shape | None, bank: MemoryBank, image_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels [H, W] bool of an image that a shape covers, however few, and that the ROI has learned.

    Raises:
        ShapeOutsideImage: If there is none.
    """
    mask = shape_mask(shape, image_hw)
    if bank.shape is None:
        return mask
    mask &= learned_mask(bank, image_hw)
    if not mask.any():
        raise ShapeOutsideImage(
            "The shape covers nothing of the area that this ROI was fitted with. Send a shape inside it, or fit again.",
            details={"field": "shape", "learned_shape": dict(bank.shape)},
        )
    return mask


def blur_px(rule: ScoreRule, bank: MemoryBank, mm_per_px: float) -> float:
    """Return the blur of a map in its own pixels: as wide on the part as that of the images which were learned."""
    return rule.blur_sigma * bank.mm_per_px / mm_per_px


def judge(
    bank: MemoryBank,
    distances: NDArray[np.float32],
    placement: Placement,
    mask: NDArray[np.bool_],
    terms: ScoringTerms,
    *,
    heatmap_full_scale: float,
    facts: Mapping[str, Any],
    mm_per_px: float | None = None,
) -> Inspection:
    """Return the inspection of an image.

    Args:
        bank: The memory that it was compared with.
        distances: [Ht*Wt] float32, row-major.
        placement: How the image was brought to the grid.
        mask: [H, W] bool, the pixels that count.
        terms: What it is measured and judged by.
        heatmap_full_scale: The map value that the heat map shows as 255.
        facts: What ``params`` holds beside the terms.
        mm_per_px: Millimetres per pixel of the image; None for the memory's own.
    """
    calibration, rule = terms.calibration, terms.rule
    mm_per_px = bank.mm_per_px if mm_per_px is None else mm_per_px
    learned = np.where(bank.mask_cells, distances, np.nan).astype(np.float32)
    image_map = anomaly_map(learned, placement, mask, blur_sigma=blur_px(rule, bank, mm_per_px))
    scores = image_scores(image_map, mask, rule, mm_per_px=mm_per_px)
    score = scores[rule.mode]
    regions: tuple[Region, ...] = ()
    warnings = terms.warnings
    if calibration is not None:
        judged = {"score": score, "threshold": calibration.threshold, "mm_per_px": mm_per_px}
        regions = regions_of(image_map, mask, rule, **judged)
        warnings = (*warnings, *contradictions(mask, rule, regions, **judged))
    return Inspection(
        measured_score=score,
        calibration=calibration,
        map=image_map,
        mask=mask,
        regions=regions,
        warnings=warnings,
        grid_hw=placement.grid_hw,
        heatmap_full_scale=heatmap_full_scale,
        params={
            **facts,
            "k": terms.k,
            "p_score": rule.percentile,
            "blur_sigma": rule.blur_sigma,
            "score_percentile": rule.percentile,
            "score_mode": rule.mode,
            "scores": scores,
            "measured_score": score,
            "area_mm2_thr": rule.area_mm2_thr,
            "heatmap_scale": heatmap_full_scale,
            "calibration_stale": terms.is_stale,
        },
    )
