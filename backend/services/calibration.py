"""Giving a memory its threshold: the use case behind ``/calibrate_ng``, and its renewal after a fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from backend.calib import OK_PERCENTILE, Calibration, ScoreMode, ScoreRule, set_threshold
from backend.errors import InvalidInput
from backend.memory_bank.bank import MemoryBank
from backend.scoring.inspection import rule_in_force
from backend.scoring.leave_one_out import LeaveOneOutScores

_FIT_SCORE_RATIO = 0.5


@dataclass(frozen=True, kw_only=True)
class CalibrationRequest:
    """What to calibrate with.

    Attributes:
        ok_scores: Scores of good images; None takes the memory's own leave-one-image-out scores.
        ng_scores: Scores of bad images.
        scores_from: Where the scores given came from.
        rule: How maps become scores from now on.
        measured_with: How the scores in the request were measured: the rule in force so far.
        area_mm2_thr: Regions below it are dropped, mm².
        ok_percentile: Percentile of the OK scores that the threshold is.
        margin: Factor on it.
        min_parts: Parts that stored scores must come from.
    """

    ok_scores: Sequence[float] | None
    ng_scores: Sequence[float] | None
    rule: ScoreRule
    measured_with: ScoreRule
    area_mm2_thr: float
    ok_percentile: float = OK_PERCENTILE
    margin: float = 1.0
    scores_from: Literal["request", "dataset"] = "request"
    min_parts: int = 2


def calibrated(bank: MemoryBank, request: CalibrationRequest, scores: LeaveOneOutScores) -> Calibration:
    """Return the calibration of a memory.

    Args:
        bank: The memory.
        request: What to calibrate with.
        scores: The memory's own, under the request's rule.

    Raises:
        InvalidInput: If no scores are given and the memory has none of its own (fewer than two parts).
        InvalidScores: If scores are empty, negative or not finite.
    """
    stored = scores.by_part
    if request.ok_scores is None and len(stored) < request.min_parts:
        raise InvalidInput(
            "The field ok_scores is missing, and the memory has no leave-one-image-out scores of its own: it needs "
            f"good images of at least {request.min_parts} parts. Fit more good images, or send ok_scores.",
            details={"field": "ok_scores", "stored_scores": len(stored)},
        )
    source: Literal["stored", "request", "dataset"] = "stored" if request.ok_scores is None else request.scores_from
    ok_scores = stored if request.ok_scores is None else request.ok_scores
    found = set_threshold(ok_scores, request.ng_scores, percentile=request.ok_percentile, margin=request.margin)
    warnings = list(found.warnings)
    if source == "request" and len(stored) >= 2 and _look_like_fit_scores(ok_scores, stored):
        warnings.append(
            "The OK scores sent are far below the stored leave-one-image-out scores: they look like scores of images "
            "that the memory was fitted on, and a threshold from them rejects good parts. Leave ok_scores out to use "
            "the stored ones."
        )
    if request.rule != request.measured_with and (source != "stored" or request.ng_scores):
        warnings.append(
            f"The scores sent were measured as {_description(request.measured_with)}, but from now on the score is "
            f"{_description(request.rule)}. Inspect those images again and calibrate with the new scores."
        )
    return Calibration(
        threshold=found.threshold,
        p99_ok=found.p99_ok,
        p5_ng=found.p5_ng,
        ok_percentile=request.ok_percentile,
        score_mode=request.rule.mode,
        score_percentile=request.rule.percentile,
        blur_sigma=request.rule.blur_sigma,
        area_mm2_thr=request.area_mm2_thr,
        mm_per_px=bank.mm_per_px,
        n_ok=found.n_ok,
        n_ng=found.n_ng,
        ng_caught=found.ng_caught,
        margin=found.margin,
        method=found.method,
        ok_scores_from=source,
        bounds=found.bounds,
        ok_mean=found.ok_mean,
        ng_mean=found.ng_mean,
        memory_checksum=bank.checksum,
        warnings=tuple(warnings),
    )


def renewed(previous: Calibration, bank: MemoryBank, scores: LeaveOneOutScores) -> Calibration | None:
    """Return the calibration of a new memory with the settings of the previous one, or None where it cannot be renewed.

    A calibration that rests on NG scores cannot: those were measured with the old memory.

    Args:
        previous: The calibration of the memory before.
        bank: The new memory.
        scores: The new memory's own, under ``rule_in_force(bank, previous)``.
    """
    rule = rule_in_force(bank, previous)
    if previous.n_ng or len(scores.by_part) < 2:
        return None
    request = CalibrationRequest(
        ok_scores=None,
        ng_scores=None,
        rule=rule,
        measured_with=rule,
        area_mm2_thr=previous.area_mm2_thr,
        ok_percentile=previous.ok_percentile,
        margin=previous.margin,
    )
    return calibrated(bank, request, scores)


def _look_like_fit_scores(sent: Sequence[float], stored: Sequence[float]) -> bool:
    # Half of n honest scores lie below all of the stored ones with a chance that vanishes with n; scores of fit images
    # lie there as a rule.
    return bool(np.median(sent) < max(min(stored), _FIT_SCORE_RATIO * float(np.median(stored))))


def _description(rule: ScoreRule) -> str:
    names: dict[ScoreMode, str] = {
        "percentile": f"the {rule.percentile:g}th percentile of the map",
        "top_mean": f"the mean of the top {100 - rule.percentile:g} % of the map",
        "max": "the maximum of the map",
    }
    return names[rule.mode]
