"""Good images that may be none: those whose leave-one-out score stands out among the others.

One bad image among the good ones raises the threshold above the defects of its kind, and nothing else shows it. Its own
score is measured without it, so it is as large as if the image were inspected.

What stands out is judged by what shows most defects, whatever score mode is in force: the geometric mean of the mean of
the highest 1 % of the map and of its area score. An image is a suspect if the logarithm of that lies above the median
of the other parts by more than

    0.2 + 3 s,    s = max(1.4826 MAD, (p90 - median) / 1.2816),

all three of the other parts' logarithms: the upper flank decides, because scores of good parts have a long one. The
median and p90 do not move for the suspect itself, so a second one is seen beside it, unless both show the same at the
same place: then each is normal as long as the other is learned.

Measured on fits of 20, 30 and 50 images with the filter bank. Somebody is named among good images alone in 8 % of the
fits of rendered flanges, 1 % of castings, 3 % of commutators, and 1 to 5 % of draws from log-normal scores (σ 0.35).
One bad image among them is named: 97 % of the rendered defects, 79 % of the castings', 41 % of the commutators' (73 %
of those whose score lies 10 % above all others). Of two bad ones of a kind: each in 90, 56 and 21 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from backend.calib import ScoreRule
from backend.memory_bank.bank import MemoryBank
from backend.scoring.anomaly_map import anomaly_map
from backend.scoring.image_score import image_scores
from backend.scoring.leave_one_out import LeaveOneOutScores, learned_mask

MIN_PARTS: Final = 8
"""Other parts that it takes to say what is usual."""

_PERCENTILE: Final = 99.0
_FAR: Final = 0.2
_TIMES: Final = 3.0
_MAD_TO_SIGMA: Final = 1.4826
_P90_TO_SIGMA: Final = 1.2816
_LEAST: Final = 1e-9


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A learned image that stands out.

    Attributes:
        digest: The image.
        score: Its leave-one-out score, in the score mode in force.
        times_median: How far it stands out: its evidence (see above) ÷ the median of that of the other parts.
    """

    digest: str
    score: float
    times_median: float


def find_suspects(bank: MemoryBank, scores: LeaveOneOutScores, rule: ScoreRule) -> tuple[Suspect, ...]:
    """Return the images of a memory that stand out, the farthest first.

    Args:
        bank: The memory. Images that were scored beside an image of their own part say nothing and are passed over.
        scores: Its leave-one-out scores, under ``rule``.
        rule: How maps become scores.
    """
    counts = [digest for digest in scores.by_image if digest not in bank.scored_beside_own_part]
    parts = bank.distinct_parts
    if len({parts[digest] for digest in counts}) <= MIN_PARTS:
        return ()
    evidence = _evidence(bank, replace(rule, percentile=_PERCENTILE))
    by_part: dict[str, float] = {}
    for digest in counts:
        by_part[parts[digest]] = max(evidence[digest], by_part.get(parts[digest], -np.inf))
    found = []
    for digest in counts:
        others = np.array([value for part, value in by_part.items() if part != parts[digest]])
        median, p90 = np.percentile(others, (50, 90))
        width = max(_MAD_TO_SIGMA * float(np.median(np.abs(others - median))), (p90 - median) / _P90_TO_SIGMA)
        above = evidence[digest] - float(median)
        if above > _FAR + _TIMES * width:
            found.append(Suspect(digest=digest, score=scores.by_image[digest], times_median=float(np.exp(above))))
    return tuple(sorted(found, key=lambda suspect: (-suspect.times_median, suspect.digest)))


def _evidence(bank: MemoryBank, rule: ScoreRule) -> Mapping[str, float]:
    """Return by image the logarithm of what is compared."""
    mask = learned_mask(bank, bank.placement.image_hw)
    return {
        digest: _evidence_of(bank, distances, mask, rule)
        for digest, distances in zip(bank.image_digests, bank.loo_scores, strict=True)
        if np.isfinite(distances).any()
    }


def _evidence_of(bank: MemoryBank, distances: NDArray[np.float32], mask: NDArray[np.bool_], rule: ScoreRule) -> float:
    image_map = anomaly_map(distances, bank.placement, mask, blur_sigma=rule.blur_sigma)
    found = image_scores(image_map, mask, rule, mm_per_px=bank.mm_per_px)
    return float(np.log(np.maximum([found["top_mean"], found["area"]], _LEAST)).mean())
