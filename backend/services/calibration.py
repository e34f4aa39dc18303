"""Giving a memory its threshold, and its renewal after a fit: what ``/calibrate_ng``, fits and refits share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from backend.calib import (
    OK_PERCENTILE,
    OWN_SHAPES,
    Calibration,
    ScoreRule,
    ScoresFrom,
    manual_threshold,
    set_threshold,
)
from backend.errors import InvalidInput
from backend.imaging.placement import Placement
from backend.memory_bank.bank import MemoryBank
from backend.scoring.inspection import rule_in_force
from backend.scoring.leave_one_out import LeaveOneOutScores
from backend.services.promises import with_honest_promise
from backend.services.stored_scores import LabelScores, StoredScores

_FIT_SCORE_RATIO = 0.5


@dataclass(frozen=True, kw_only=True)
class StoredUsed:
    """Which stored images scores are of; attributes as of ``Calibration``."""

    ok_images: tuple[str, ...] = ()
    ng_images: tuple[str, ...] = ()
    shape: Mapping[str, Any] | None = None


def calibrated(
    bank: MemoryBank,
    scores: LeaveOneOutScores,
    *,
    rule: ScoreRule,
    ok_scores: Sequence[float] | None = None,
    ng_scores: Sequence[float] | None = None,
    stored_ng: LabelScores | None = None,
    scores_from: Literal["request", "dataset"] = "request",
    of_dataset: StoredUsed | None = None,
    ok_percentile: float = OK_PERCENTILE,
    margin: float = 1.0,
    threshold: float | None = None,
    n_added: int = 0,
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
        stored_ng: Those of the stored bad images, in their place where none are given.
        scores_from: Where the scores given came from.
        of_dataset: The images that they are of, where they came from the data set.
        ok_percentile: Percentile of the OK scores that the threshold is.
        margin: Factor on it.
        threshold: Set by hand; the scores then only say what it means.
        n_added: Number of the scores in ``scores.by_part`` that are of parts beside the memory's.
        min_parts: Parts that the memory's own scores must come from.
        warnings: What is known of the call already.

    Raises:
        InvalidInput: If no scores are given and the memory has none of its own (fewer than two parts), unless
            ``threshold`` is set by hand.
        InvalidScores: If scores are empty, negative or not finite.
    """
    stored = scores.by_part
    if ok_scores is None and len(stored) < min_parts and threshold is None:
        raise InvalidInput(
            "The field ok_scores is missing, and the memory has no leave-one-image-out scores of its own: it needs "
            f"good images of at least {min_parts} parts. Fit more good images, or send ok_scores.",
            details={"field": "ok_scores", "stored_scores": len(stored)},
        )
    source: ScoresFrom = "stored" if ok_scores is None else scores_from
    used = stored if ok_scores is None else ok_scores
    ng_source: ScoresFrom | None = scores_from if ng_scores else None
    images = of_dataset or StoredUsed()
    if stored_ng is not None and not ng_scores:
        ng_source = "stored" if stored_ng.by_part else None
        ng_scores, images = stored_ng.by_part, StoredUsed(ng_images=stored_ng.images)
        warnings = [*warnings, *stored_ng.warnings]
    if threshold is None:
        found = set_threshold(used, ng_scores, percentile=ok_percentile, margin=margin)
    else:
        found = manual_threshold(threshold, used if len(used) else None, ng_scores)
    if source != "request":
        found = with_honest_promise(found, bank, scores, of_memory=source == "stored", n_added=n_added)
    warnings = [*warnings, *found.warnings]
    if source == "request" and bank.near_identical and found.n_ok > bank.n_parts:
        warnings.append(
            f"{found.n_ok} OK scores were sent, but the good images of this ROI show {bank.n_parts} different parts, "
            "and some of them are near-identical. The promise holds only if each score is of another part."
        )
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
        ng_scores_from=ng_source,
        memory_checksum=bank.checksum,
        **vars(images),
    )


def rests_on_stored_images(calibration: Calibration | None) -> bool:
    """Return whether a renewal scores stored images beside those that the memory has learned."""
    if calibration is None:
        return False
    return calibration.method == "manual" or bool(calibration.ng_images or calibration.ok_images)


def prepare_renewal(calibration: Calibration | None, stored: StoredScores, fitted: Placement) -> None:
    """Make the embeddings that a renewal needs, before the ROI's lock is taken: nobody waits for them then.

    Raises:
        Unavailable: If they cannot be made now.
    """
    if calibration is None or not rests_on_stored_images(calibration):
        return
    stored.prepare(stored.images.labelled("ng"), fitted)
    if calibration.ok_images:
        stored.prepare(stored.images.included(), fitted)


def warnings_of_renewal(previous: Calibration | None, new: Calibration | None) -> tuple[str, ...]:
    """Return what a renewed calibration says that whoever fitted should know."""
    return () if new is None or not rests_on_stored_images(previous) else new.warnings


def renewed(
    previous: Calibration,
    bank: MemoryBank,
    scores: LeaveOneOutScores,
    stored: StoredScores | None = None,
    *,
    same_extractor: bool = True,
) -> Calibration | None:
    """Return the calibration of a new memory with the settings of the previous one, or None where it cannot be renewed.

    One that rests on NG scores that a caller sent cannot: they were measured with the old memory. One that rests on
    stored images is renewed from what is stored of them now. A threshold that was set by hand stays, and a warning says
    what it means now; on the scale of another extractor it means nothing.

    Args:
        previous: The calibration of the memory before.
        bank: The new memory.
        scores: The new memory's own, under ``rule_in_force(bank, previous)``.
        stored: Scores the stored images; needed where ``rests_on_stored_images(previous)``.
        same_extractor: Whether the memory before was made by the extractor of the new one.
    """
    rule = rule_in_force(bank, previous)
    settings: dict[str, Any] = {"rule": rule, "ok_percentile": previous.ok_percentile, "margin": previous.margin}
    if previous.method == "manual":
        return _kept_by_hand(previous, bank, scores, stored) if same_extractor else None
    if previous.ng_scores_from == "request" or (stored is None and rests_on_stored_images(previous)):
        return None
    if previous.ok_scores_from == "dataset" and previous.ok_images and stored is not None:
        return _renewed_from_dataset(bank, scores, stored, settings)
    if previous.ng_scores_from is not None and not previous.ng_images:
        return None
    if len(scores.by_part) < 2:
        return None
    if not previous.ng_images or stored is None:
        return calibrated(bank, scores, **settings)
    ng = stored.scores(stored.images.labelled("ng"), bank, rule)
    gone = [] if ng.by_part else [_NG_GONE]
    return calibrated(bank, scores, stored_ng=ng, warnings=gone, **settings)


_NG_GONE = (
    "The NG images that the threshold rested on are no longer stored, or cannot be scored: it now rests on good parts "
    "alone."
)


def dataset_shape(shapes: Sequence[Mapping[str, Any] | None]) -> Mapping[str, Any] | None:
    """Return the ``Calibration.shape`` of scores of images within these shapes, in pixels of the memory's images."""
    first = shapes[0] if shapes else None
    return first if all(shape == first for shape in shapes) else OWN_SHAPES


def _renewed_from_dataset(
    bank: MemoryBank, scores: LeaveOneOutScores, stored: StoredScores, settings: Mapping[str, Any]
) -> Calibration | None:
    """Return what ``/calibrate_dataset`` would set now."""
    rule: ScoreRule = settings["rule"]
    ok = stored.scores(stored.images.included(), bank, rule, within_own_shapes=True)
    ng = stored.scores(stored.images.labelled("ng"), bank, rule, within_own_shapes=True)
    if len(ok.by_part) < 2:
        return None
    return calibrated(
        bank,
        scores,
        ok_scores=ok.by_part,
        ng_scores=ng.by_part,
        scores_from="dataset",
        of_dataset=StoredUsed(ok_images=ok.images, ng_images=ng.images, shape=dataset_shape([*ok.shapes, *ng.shapes])),
        warnings=[*ok.warnings, *ng.warnings],
        **settings,
    )


def _kept_by_hand(
    previous: Calibration, bank: MemoryBank, scores: LeaveOneOutScores, stored: StoredScores | None
) -> Calibration:
    ng = None
    if stored is not None:
        ng = stored.scores(stored.images.labelled("ng"), bank, rule_in_force(bank, previous))
    kept = calibrated(
        bank,
        scores,
        rule=rule_in_force(bank, previous),
        stored_ng=ng,
        threshold=previous.threshold,
        ok_percentile=previous.ok_percentile,
    )
    said = _of_kept(kept, max(scores.by_part, default=None))
    return replace(kept, shape=previous.shape, warnings=(*kept.warnings, said))


def _of_kept(kept: Calibration, largest_ok: float | None) -> str:
    of_ng = f" and {kept.ng_caught} of {kept.n_ng} stored NG images are found" if kept.n_ng else ""
    largest = "" if largest_ok is None else f" (the largest is {largest_ok:.4g})"
    return (
        f"The threshold {kept.threshold:.4g} was set by hand and stays, but this fit has moved the scores that it is "
        f"compared with: {kept.ok_rejected} of {kept.n_ok} stored good parts lie above it now{largest}{of_ng}. See "
        "that it is still right, or calibrate without threshold."
    )


def _look_like_fit_scores(sent: Sequence[float], stored: Sequence[float]) -> bool:
    # Half of n honest scores lie below all of the stored ones with a chance that vanishes with n; scores of fit images
    # lie there as a rule.
    return bool(np.median(sent) < max(min(stored), _FIT_SCORE_RATIO * float(np.median(stored))))
