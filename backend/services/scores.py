"""The scores of a ROI's stored images under every score mode: what a threshold can be chosen by."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from backend.artifacts.model_key import ModelKey
from backend.artifacts.stored_image import Label, StoredImage
from backend.calib import OK_PERCENTILE, Calibration, ScoreMode, ScoreRule, Threshold, set_threshold
from backend.errors import InspectionError
from backend.memory_bank.bank import MemoryBank
from backend.scoring.anomaly_map import anomaly_map
from backend.scoring.image_score import image_scores
from backend.scoring.inspection import rule_in_force
from backend.scoring.leave_one_out import LeaveOneOutScores, learned_mask
from backend.scoring.suspects import find_suspects
from backend.services.calibrating import Calibrator
from backend.services.stored_scores import worst_by_part

MODES: tuple[ScoreMode, ...] = ("percentile", "top_mean", "max", "area")
_KEPT = 16
"""ROIs whose scores are kept."""


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """The scores of one image.

    Attributes:
        digest: The image.
        label: Its class.
        file_name: What clients know it by; its digest where it is stored no more.
        part_id: Its part; near-identical images have one.
        scores: By mode; without its own part, where it was learned.
        is_suspect: Whether it stands out among the good ones.
        is_near_identical: Whether another image shows the same.
    """

    digest: str
    label: Label
    file_name: str
    part_id: str
    scores: Mapping[ScoreMode, float]
    is_suspect: bool = False
    is_near_identical: bool = False


@dataclass(frozen=True, kw_only=True)
class RoiScores:
    """The scores of a ROI's images.

    Attributes:
        rule: The rule in force; all modes have its percentile, blur and area.
        images: The good images that were learned, then the stored bad ones.
        thresholds: What ``/calibrate_ng`` without scores would set for each mode, with the percentile and the margin of
            the last calibration; a mode is missing where the good parts are fewer than a calibration takes.
        warnings: What could not be scored.
    """

    rule: ScoreRule
    images: tuple[ImageScores, ...]
    thresholds: Mapping[ScoreMode, Threshold]
    warnings: tuple[str, ...]


class ScoreListing:
    """Scores the images of ROIs; kept until the memory, the calibration or the bad images change."""

    def __init__(self, calibrator: Calibrator) -> None:
        self._calibrator = calibrator
        self._kept: OrderedDict[ModelKey, tuple[object, RoiScores]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: ModelKey) -> RoiScores:
        """Return the scores of a ROI.

        Raises:
            MemoryNotFound: If it was never fitted.
            ArtefactCorrupt: If its memory is damaged.
            StorageFailed: If a file cannot be read.
        """
        model = self._calibrator.models.get(key)
        bank, last = model.fitted_bank(key), model.last_calibration
        bad = self._calibrator.store.images(key).labelled("ng")
        made_of = (bank.checksum, last and (last.rule, last.ok_percentile, last.margin), tuple(bad))
        with self._lock:
            kept = self._kept.get(key)
        if kept is not None and kept[0] == made_of:
            return kept[1]
        found, is_lasting = self._made(key, bank, last, bad)
        if is_lasting:
            with self._lock:
                self._kept[key] = made_of, found
                self._kept.move_to_end(key)
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
        return found

    def _made(
        self, key: ModelKey, bank: MemoryBank, last: Calibration | None, bad: Sequence[StoredImage]
    ) -> tuple[RoiScores, bool]:
        """Return the scores, and whether they are worth keeping: not where some could not be made."""
        rule = rule_in_force(bank, last)
        good = _scores_of_good(bank, rule)
        bad_scores, warnings = self._scores_of_bad(key, bank, rule, bad)
        thresholds = {}
        for mode in MODES:
            ok = _worst_of_good(bank, good, mode)
            if len(ok) >= self._calibrator.min_ok_samples:
                thresholds[mode] = set_threshold(
                    ok,
                    worst_by_part([(image, scores[mode]) for image, scores in bad_scores], bank.distinct_parts),
                    percentile=OK_PERCENTILE if last is None else last.ok_percentile,
                    margin=1.0 if last is None else last.margin,
                )
        in_force = {digest: scores[rule.mode] for digest, scores in good.items()}
        loo = LeaveOneOutScores(by_image=in_force, by_part=_worst_of_good(bank, good, rule.mode))
        suspects = {suspect.digest for suspect in find_suspects(bank, loo, rule)}
        twins = {digest for group in bank.near_identical for digest in group}
        images = self._calibrator.store.images(key)
        listed = []
        for digest, scores in good.items():
            stored = images.get(digest, "ok")
            listed.append(
                ImageScores(
                    digest=digest,
                    label="ok",
                    file_name=digest if stored is None else stored.file_name,
                    part_id=bank.distinct_parts[digest],
                    scores=scores,
                    is_suspect=digest in suspects,
                    is_near_identical=digest in twins,
                )
            )
        for image, scores in bad_scores:
            listed.append(
                ImageScores(
                    digest=image.digest, label="ng", file_name=image.file_name, part_id=image.part_id, scores=scores
                )
            )
        return RoiScores(rule=rule, images=tuple(listed), thresholds=thresholds, warnings=warnings), not warnings

    def _scores_of_bad(
        self, key: ModelKey, bank: MemoryBank, rule: ScoreRule, bad: Sequence[StoredImage]
    ) -> tuple[list[tuple[StoredImage, Mapping[ScoreMode, float]]], tuple[str, ...]]:
        if not bad:
            return [], ()
        try:
            # A call that only reads stores no embeddings.
            measured, warnings = self._calibrator.stored_scores(key, bank, keeps=False).all_of(bad, bank)
        except InspectionError as error:
            return [], (f"The {len(bad)} stored NG images are left out: {error.sentence}",)
        found: list[tuple[StoredImage, Mapping[ScoreMode, float]]] = []
        for each in measured:
            image_map, mask = each.map_within(bank, rule, None, each.image.image_hw)
            found.append((each.image, image_scores(image_map, mask, rule, mm_per_px=each.mm_per_px)))
        return found, warnings


def _scores_of_good(bank: MemoryBank, rule: ScoreRule) -> dict[str, Mapping[ScoreMode, float]]:
    """Return the leave-one-out scores by digest; an image that no other part left a vector for is missing."""
    mask = learned_mask(bank, bank.placement.image_hw)
    found: dict[str, Mapping[ScoreMode, float]] = {}
    for digest, distances in zip(bank.image_digests, bank.loo_scores, strict=True):
        if np.isfinite(distances).any():
            image_map = anomaly_map(distances, bank.placement, mask, blur_sigma=rule.blur_sigma)
            found[digest] = image_scores(image_map, mask, rule, mm_per_px=bank.mm_per_px)
    return found


def _worst_of_good(
    bank: MemoryBank, scores: Mapping[str, Mapping[ScoreMode, float]], mode: ScoreMode
) -> tuple[float, ...]:
    worst: dict[str, float] = {}
    for digest, part in zip(bank.image_digests, bank.part_ids, strict=True):
        if digest in scores:
            worst[part] = max(scores[digest][mode], worst.get(part, 0.0))
    return tuple(worst.values())
