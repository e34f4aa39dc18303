"""How well scores tell defective from good: per image, per pixel where masks exist, and over several runs.

Scores and maps are larger-is-more-anomalous throughout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import label
from sklearn.metrics import precision_recall_curve, roc_auc_score, roc_curve

from backend.calib import Bounds, ScoreMode

AUPRO_LIMIT = 0.3
"""Share of false-positive pixels up to which the PRO curve is integrated."""

_BINS = 1 << 15  # every float16 that is not negative
_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=np.int64)


def image_auroc(good: Sequence[float], defective: Sequence[float]) -> float:
    """Return the chance that a defective image scores above a good one (ties count half)."""
    return float(roc_auc_score(*_labelled(good, defective)))


def f1_max(good: Sequence[float], defective: Sequence[float]) -> float:
    """Return the largest F1 of "defective" over all thresholds: what a threshold chosen on the test set would reach."""
    precision, recall, _ = precision_recall_curve(*_labelled(good, defective))
    # With no true positive, F1 is 0; the curve's end point (precision 1, recall 0) is one of these.
    return float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12)))


def roc_points(good: Sequence[float], defective: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ROC curve of the images: false-alarm rates and recalls, from (0, 0) to (1, 1)."""
    false_alarms, recall, _ = roc_curve(*_labelled(good, defective))
    return false_alarms, recall


def share_above(scores: Sequence[float], threshold: float) -> float:
    """Return the share of scores that the service would call ``ng``: those above the threshold, not those at it."""
    return float(np.mean(np.asarray(scores) > threshold))


class PixelScores:
    """Pixel AUROC and AUPRO over many maps in constant memory.

    Maps are rounded to float16 and counted by bit pattern: for numbers that are not negative the order of the patterns
    is the order of the values, so a histogram over the 32,768 patterns holds every distinct value and loses nothing but
    the rounding (at most 0.05 % of a value, whatever the scale). Both figures are exact for the rounded maps.
    """

    def __init__(self) -> None:
        self._normal = np.zeros(_BINS, np.int64)
        self._defective = np.zeros(_BINS, np.int64)
        self._overlap = np.zeros(_BINS, np.float64)
        self._n_regions = 0

    def add(self, image_map: NDArray[np.float32], defect_mask: NDArray[np.bool_]) -> None:
        """Count one image.

        Args:
            image_map: [H, W] float32, finite, not negative, below 65,504.
            defect_mask: [H, W] bool, True where the defect is; all False for a good image.

        Raises:
            ValueError: If the two differ in size or the map is out of range.
        """
        if image_map.shape != defect_mask.shape or image_map.ndim != 2:
            raise ValueError(f"the map is {image_map.shape}, the mask {defect_mask.shape}; both must be one [H, W]")
        # The sum turns -0.0 into 0.0, whose pattern is the smallest.
        values = image_map.astype(np.float16) + np.float16(0)
        if not np.isfinite(values).all() or (values < 0).any():
            raise ValueError("a map must be finite and not negative")
        patterns = values.view(np.uint16)
        self._normal += np.bincount(patterns[~defect_mask], minlength=_BINS)
        if not defect_mask.any():
            return
        self._defective += np.bincount(patterns[defect_mask], minlength=_BINS)
        regions, n_regions = label(defect_mask, structure=_EIGHT_NEIGHBOURS)
        area_px = np.bincount(regions.ravel())
        self._overlap += np.bincount(
            patterns[defect_mask], weights=1.0 / area_px[regions[defect_mask]], minlength=_BINS
        )
        self._n_regions += n_regions

    @property
    def n_regions(self) -> int:
        """Defect regions seen so far."""
        return self._n_regions

    def auroc(self) -> float | None:
        """Return the chance that a defective pixel lies above a normal one (ties count half); None without both."""
        normal, defective = self._normal.sum(), self._defective.sum()
        if not normal or not defective:
            return None
        below = np.cumsum(self._normal) - self._normal
        return float((self._defective * (below + 0.5 * self._normal)).sum() / (float(normal) * float(defective)))

    def aupro(self, limit: float = AUPRO_LIMIT) -> float | None:
        """Return the area under the per-region overlap curve, in [0, 1]; None without both classes.

        For a threshold, a region's overlap is the share of its pixels at or above it; PRO is the mean over all regions
        (connected components of the masks, 8 neighbours), so a small defect counts as much as a large one. PRO is
        drawn over the share of normal pixels at or above the threshold, joined by straight lines, integrated from 0 to
        ``limit`` and divided by it.

        Bergmann et al. 2020, "Uninformed Students", arXiv:1911.02357, §4.1, and 2021, "The MVTec Anomaly Detection
        Dataset", Int. J. Computer Vision 129, §5, first used in Bergmann et al. 2019 (CVPR) for one threshold.

        Args:
            limit: In (0, 1].
        """
        if not 0 < limit <= 1:
            raise ValueError(f"limit must be in (0, 1], got {limit}")
        if not self._normal.any() or not self._n_regions:
            return None
        used = (self._normal > 0) | (self._overlap > 0)
        false_positives = _from_above(self._normal[used]) / self._normal.sum()
        overlap = _from_above(self._overlap[used]) / self._n_regions
        end = int(np.searchsorted(false_positives, limit))  # the first point at or beyond the limit
        (x0, x1), (y0, y1) = false_positives[end - 1 : end + 1], overlap[end - 1 : end + 1]
        x = np.append(false_positives[:end], limit)
        y = np.append(overlap[:end], y0 + (y1 - y0) * (limit - x0) / (x1 - x0))
        return float(np.trapezoid(y, x) / limit)


@dataclass(frozen=True, kw_only=True)
class ModeScores:
    """What the images scored in one run under one score mode, and the two thresholds.

    Attributes:
        good: Scores of good images that the memory has not seen.
        defective: Scores of defective images.
        threshold: The service's own, from leave-one-image-out scores of the learned images.
        fit_image_threshold: By the same rule from the learned images as they score with their own vectors in place.
    """

    good: tuple[float, ...]
    defective: tuple[float, ...]
    threshold: float
    fit_image_threshold: float

    def figures(self) -> dict[str, float]:
        """Return the figures by name, each in [0, 1]."""
        return {
            "auroc": image_auroc(self.good, self.defective),
            "f1_max": f1_max(self.good, self.defective),
            "false_alarms": share_above(self.good, self.threshold),
            "recall": share_above(self.defective, self.threshold),
            "fit_image_false_alarms": share_above(self.good, self.fit_image_threshold),
            "fit_image_recall": share_above(self.defective, self.fit_image_threshold),
        }


@dataclass(frozen=True, kw_only=True)
class Run:
    """One draw of the shots.

    Attributes:
        seed: Drew the shots and the coreset's first centre.
        fit: Names of the images that were learned.
        good: Names of the good images that were inspected, in the order of their scores in ``by_mode``.
        defective: The same of the defective images.
        n_seen: Test images left out because they are, pixel for pixel, among the learned ones.
        by_mode: The scores by score mode.
        pixel_auroc: None where no mask is known.
        aupro: Up to ``AUPRO_LIMIT``; None where no mask is known.
        bounds: What the service promised about its threshold.
        default_mode: The score mode of a first calibration that names none.
        aligned: Whether the fit took the ROI for aligned.
    """

    seed: int
    fit: tuple[str, ...]
    good: tuple[str, ...]
    defective: tuple[str, ...]
    n_seen: int
    by_mode: Mapping[ScoreMode, ModeScores]
    pixel_auroc: float | None
    aupro: float | None
    bounds: Bounds
    default_mode: ScoreMode
    aligned: bool

    def figures(self, mode: ScoreMode) -> dict[str, float | None]:
        """Return all figures of a score mode; those of the pixels are the same for every mode."""
        return {**self.by_mode[mode].figures(), "pixel_auroc": self.pixel_auroc, "aupro": self.aupro}

    def recall_by_kind(self, mode: ScoreMode) -> dict[str, float]:
        """Return the share of the defects of each kind, the folder's name, that was found at the threshold."""
        scores = self.by_mode[mode]
        by_kind: dict[str, list[float]] = {}
        for name, score in zip(self.defective, scores.defective, strict=True):
            by_kind.setdefault(name.partition("/")[0], []).append(score)
        return {kind: share_above(found, scores.threshold) for kind, found in by_kind.items()}


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and sample standard deviation over the runs; the latter is None for a single run."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of one value per run."""
        array = np.asarray(values, dtype=np.float64)
        return cls(mean=float(array.mean()), deviation=float(array.std(ddof=1)) if len(array) > 1 else None)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """All runs of one setting.

    Attributes:
        dataset: Name of the data.
        settings: What the service ran with, JSON types; ``extractor`` as the command line names it, ``aligned`` as the
            fit was asked, and ``mm_per_px``.
        extractor_id: Names everything that changes the embeddings.
        precision: What the extractor multiplies in.
        grid_hw: Patch grid.
        image_hw: Size of the images, px.
        n_resized: Images that had to be brought to it.
        n_masks: Defective images whose defect is known by pixel.
        pooled: Whether good parts to learn from and to test on were drawn from one pool.
        runs: One per seed.
        elapsed_s: How long it took.
    """

    dataset: str
    settings: Mapping[str, Any]
    extractor_id: str
    precision: str
    grid_hw: tuple[int, int]
    image_hw: tuple[int, int]
    n_resized: int
    n_masks: int
    pooled: bool
    runs: tuple[Run, ...]
    elapsed_s: float = field(compare=False)

    @property
    def modes(self) -> tuple[ScoreMode, ...]:
        """The score modes that were measured."""
        return tuple(self.runs[0].by_mode)

    @property
    def shots(self) -> int:
        """Good images that each run learned from."""
        return len(self.runs[0].fit)

    @property
    def default_mode(self) -> ScoreMode:
        """The score mode that the service chooses by itself for the first calibration of a ROI."""
        return self.runs[0].default_mode

    @property
    def n_by_kind(self) -> dict[str, int]:
        """Defective images that were inspected, by the name of their folder."""
        return dict(Counter(name.partition("/")[0] for name in self.runs[0].defective))

    @property
    def best_mode(self) -> ScoreMode:
        """The mode with the largest mean image AUROC; looked up in the test set, so its figure flatters a little."""
        return max(self.modes, key=lambda mode: self.spreads(mode)["auroc"].mean)

    def spreads(self, mode: ScoreMode) -> dict[str, Spread]:
        """Return mean and deviation of each figure of a mode that is known."""
        by_run = [run.figures(mode) for run in self.runs]
        found = {}
        for name, first in by_run[0].items():
            if first is not None:
                found[name] = Spread.of([value for figures in by_run if (value := figures[name]) is not None])
        return found

    def recall_by_kind(self, mode: ScoreMode) -> dict[str, Spread]:
        """Return mean and deviation of the recall of each kind of defect."""
        by_run = [run.recall_by_kind(mode) for run in self.runs]
        return {kind: Spread.of([recalls[kind] for recalls in by_run if kind in recalls]) for kind in self.n_by_kind}


def best_of(measurements: Sequence[Measurement]) -> Measurement:
    """Return the measurement whose best score mode has the largest mean image AUROC."""
    return max(measurements, key=lambda found: found.spreads(found.best_mode)["auroc"].mean)


def _from_above(counts: NDArray[np.generic]) -> NDArray[np.float64]:
    """Return the cumulated counts from the largest value down, beginning with 0."""
    return np.concatenate([[0.0], np.cumsum(counts[::-1], dtype=np.float64)])


def _labelled(good: Sequence[float], defective: Sequence[float]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    scores: ArrayLike = [*good, *defective]
    return np.repeat([0, 1], [len(good), len(defective)]), np.asarray(scores, dtype=np.float64)
