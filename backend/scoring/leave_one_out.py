"""The scores of a memory's own images, each measured without the part that it shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from backend.calib import ScoreMode, ScoreRule, set_threshold
from backend.memory_bank.bank import MemoryBank
from backend.roi_mask import scale_shape, shape_from_fields, shape_mask
from backend.scoring.anomaly_map import AnomalyMaps, anomaly_map
from backend.scoring.image_score import image_score, image_scores


@dataclass(frozen=True, kw_only=True)
class LeaveOneOutScores:
    """What the good images of a memory score when their own part is left out.

    Attributes:
        by_image: Score by image digest; an image that no other part left a vector for is missing.
        by_part: The largest score of each part: parts are independent draws, two images of one part are not.
    """

    by_image: dict[str, float]
    by_part: tuple[float, ...]

    def summary(self) -> dict[str, float | int] | None:
        """Return n, p50, p95, p99 and max over the images, or None without any."""
        if not self.by_image:
            return None
        scores = np.fromiter(self.by_image.values(), np.float64)
        p50, p95, p99 = (float(value) for value in np.percentile(scores, (50, 95, 99)))
        return {"n": len(scores), "p50": p50, "p95": p95, "p99": p99, "max": float(scores.max())}

    def suggested_threshold(self) -> float | None:
        """Return the threshold that these scores alone call for, or None for fewer than two parts."""
        return set_threshold(self.by_part).threshold if len(self.by_part) >= 2 else None


def learned_mask(bank: MemoryBank, image_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels [H, W] of an image that lie in the shape that a memory has learned."""
    if bank.shape is None:
        return shape_mask(None, image_hw)
    return shape_mask(scale_shape(shape_from_fields(bank.shape), bank.placement.image_hw, image_hw), image_hw)


def leave_one_out_scores(bank: MemoryBank, rule: ScoreRule, mask: NDArray[np.bool_] | None = None) -> LeaveOneOutScores:
    """Return the scores of a memory's images, from the distances that were kept at the fit: nothing is extracted.

    Args:
        bank: The memory.
        rule: How maps become scores.
        mask: [H, W] bool, what counts, in pixels of ``bank.placement`` and within what was learned; None for all of it.
    """
    mask = learned_mask(bank, bank.placement.image_hw) if mask is None else mask
    return _collected(
        (
            (digest, part, image_score(image_map, mask, rule, mm_per_px=bank.mm_per_px))
            for digest, part, image_map in _maps(bank, rule, mask)
        ),
    )


def leave_one_out_scores_by_mode(bank: MemoryBank, rule: ScoreRule) -> dict[ScoreMode, LeaveOneOutScores]:
    """Return ``leave_one_out_scores`` within all that was learned, under the rule with each of the score modes."""
    mask = learned_mask(bank, bank.placement.image_hw)
    found = [
        (digest, part, image_scores(image_map, mask, rule, mm_per_px=bank.mm_per_px))
        for digest, part, image_map in _maps(bank, rule, mask)
    ]
    return {
        mode: _collected(((digest, part, scores[mode]) for digest, part, scores in found))
        for mode in get_args(ScoreMode)
    }


def _maps(bank: MemoryBank, rule: ScoreRule, mask: NDArray[np.bool_]) -> Iterator[tuple[str, str, NDArray[np.float32]]]:
    """Yield digest, part and map [H, W] float32 of each image that another part left a vector for."""
    maps: AnomalyMaps | None = None
    known: NDArray[np.bool_] = np.zeros(0, np.bool_)
    for digest, part, distances in zip(bank.image_digests, bank.part_ids, bank.loo_scores, strict=True):
        finite = np.isfinite(distances)
        if not finite.any():
            continue
        if maps is None or not np.array_equal(finite, known):
            maps, known = AnomalyMaps(finite, bank.placement, mask, blur_sigma=rule.blur_sigma), finite
        yield digest, part, maps.of(distances)


def _collected(scored: Iterable[tuple[str, str, float]]) -> LeaveOneOutScores:
    by_image: dict[str, float] = {}
    by_part: dict[str, float] = {}
    for digest, part, score in scored:
        by_image[digest] = score
        by_part[part] = max(score, by_part.get(part, 0.0))
    return LeaveOneOutScores(by_image=by_image, by_part=tuple(by_part.values()))


def learned_image_score(
    bank: MemoryBank, distances: NDArray[np.float32], mask: NDArray[np.bool_], rule: ScoreRule
) -> float:
    """Return the score of a learned image.

    Args:
        bank: The memory.
        distances: [Ht*Wt] float32, NaN outside the learned cells.
        mask: [H, W] bool, as ``learned_mask`` gives it for the memory's own image size.
        rule: How the map becomes a score.
    """
    image_map = anomaly_map(distances, bank.placement, mask, blur_sigma=rule.blur_sigma)
    return image_score(image_map, mask, rule, mm_per_px=bank.mm_per_px)
