"""Giving a memory its threshold: the use case behind ``/calibrate_ng``, and its renewal after a fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from backend.calib import OK_PERCENTILE, Calibration, ScoreRule, set_threshold
from backend.errors import InvalidInput
from backend.memory_bank.bank import MemoryBank
from backend.scoring.inspection import rule_in_force
from backend.scoring.leave_one_out import LeaveOneOutScores

_FIT_SCORE_RATIO = 0.5


def calibrated(
    bank: MemoryBank,
    scores: LeaveOneOutScores,
    *,
    rule: ScoreRule,
    ok_scores: Sequence[float] | None = None,
    ng_scores: Sequence[float] | None = None,
    scores_from: Literal["request", "dataset"] = "request",
    ok_percentile: float = OK_PERCENTILE,
    margin: float = 1.0,
    min_parts: int = 2,
    warnings: Sequence[str] = (),
) -> Calibration:
    """Return the calibration of a memory.

    Args:
        bank: The memory.
        scores: The memory's own, under ``rule``.
        rule: How maps become scores from now on, and how those given were measured.
        ok_scores: Scores of good images; None takes the memory's own.
        ng_scores: Scores of bad images.
        scores_from: Where the scores given came from.
        ok_percentile: Percentile of the OK scores that the threshold is.
        margin: Factor on it.
        min_parts: Parts that the memory's own scores must come from.
        warnings: What is known of the call already.

    Raises:
        InvalidInput: If no scores are given and the memory has none of its own (fewer than two parts).
        InvalidScores: If scores are empty, negative or not finite.
    """
    stored = scores.by_part
    if ok_scores is None and len(stored) < min_parts:
        raise InvalidInput(
            "The field ok_scores is missing, and the memory has no leave-one-image-out scores of its own: it needs "
            f"good images of at least {min_parts} parts. Fit more good images, or send ok_scores.",
            details={"field": "ok_scores", "stored_scores": len(stored)},
        )
    source: Literal["stored", "request", "dataset"] = "stored" if ok_scores is None else scores_from
    used = stored if ok_scores is None else ok_scores
    found = set_threshold(used, ng_scores, percentile=ok_percentile, margin=margin)
    warnings = [*warnings, *found.warnings]
    if source == "request" and len(stored) >= 2 and _look_like_fit_scores(used, stored):
        warnings.append(
            "The OK scores sent are far below the stored leave-one-image-out scores: they look like scores of images "
            "that the memory was fitted on, and a threshold from them rejects good parts. Leave ok_scores out to use "
            "the stored ones."
        )
    return Calibration(
        **{**vars(found), "warnings": tuple(warnings)},
        ok_percentile=ok_percentile,
        score_mode=rule.mode,
        score_percentile=rule.percentile,
        blur_sigma=rule.blur_sigma,
        area_mm2_thr=rule.area_mm2_thr,
        mm_per_px=bank.mm_per_px,
        ok_scores_from=source,
        memory_checksum=bank.checksum,
    )


def renewed(previous: Calibration, bank: MemoryBank, scores: LeaveOneOutScores) -> Calibration | None:
    """Return the calibration of a new memory with the settings of the previous one, or None where it cannot be renewed.

    A calibration that rests on NG scores cannot: those were measured with the old memory.

    Args:
        previous: The calibration of the memory before.
        bank: The new memory.
        scores: The new memory's own, under ``rule_in_force(bank, previous)``.
    """
    if previous.n_ng or len(scores.by_part) < 2:
        return None
    return calibrated(
        bank,
        scores,
        rule=rule_in_force(bank, previous),
        ok_percentile=previous.ok_percentile,
        margin=previous.margin,
    )


def _look_like_fit_scores(sent: Sequence[float], stored: Sequence[float]) -> bool:
    # Half of n honest scores lie below all of the stored ones with a chance that vanishes with n; scores of fit images
    # lie there as a rule.
    return bool(np.median(sent) < max(min(stored), _FIT_SCORE_RATIO * float(np.median(stored))))
