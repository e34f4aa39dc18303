"""The scores of a ROI's stored images under every score mode, and the thresholds that they call for.

What a calibration would set is found by the calibrator itself, from scores that one pass over the maps gives for all
modes. Scores are kept: they change with the memory and the rule alone. Names, and which bad images there are, are read
anew for each answer.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import get_args

from backend.artifacts.image_store import ImageStore
from backend.artifacts.model_key import ModelKey
from backend.artifacts.stored_image import Label, StoredImage
from backend.calib import Bounds, Calibration, ScoreMode, ScoreRule, false_alarm_bounds
from backend.errors import ArtefactCorrupt, InspectionError, InvalidInput
from backend.memory_bank.bank import MemoryBank
from backend.scoring.leave_one_out import LeaveOneOutScores, leave_one_out_scores_by_mode
from backend.scoring.suspects import Suspect, find_suspects
from backend.services.calibrating import CalibrationRequest, Calibrator
from backend.services.model_cache import LoadedModel
from backend.services.promises import PromisedParts, promised_parts
from backend.services.rule_choice import RuleChoice, choose_rule
from backend.services.stored_scores import LabelScores, is_of_image, sentences_of_failed, worst_by_part

MODES: tuple[ScoreMode, ...] = get_args(ScoreMode)
_KEPT = 16
"""Memories under a rule whose scores are kept."""


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """The scores of one image.

    Attributes:
        digest: The image.
        label: Its class.
        file_name: What clients know it by; None where it is stored no more.
        part_id: Its part: of several images of one, the largest score counts.
        scores: By mode; without its own part, where it was learned.
        is_suspect: Whether it stands out among the good ones.
        is_near_identical: Whether another learned image shows the same.
    """

    digest: str
    label: Label
    file_name: str | None
    part_id: str
    scores: Mapping[ScoreMode, float]
    is_suspect: bool = False
    is_near_identical: bool = False


@dataclass(frozen=True, kw_only=True)
class RoiScores:
    """The scores of a ROI's images; all of one memory.

    Attributes:
        memory_checksum: The memory.
        in_force: The calibration of this memory; None without one, or where it is damaged.
        is_stale: Whether there is a calibration, but only of another memory.
        rule: With the mode that a calibration takes that names none.
        images: The good images that were learned, then the stored bad ones.
        thresholds: What ``/calibrate_ng`` with the settings of the request would set for each mode; a mode is missing
            where it would refuse.
        promised: Different good parts that promises rest on.
        promises: What a threshold set by hand promises, by how many of the good ``part_id`` lie at it or below, from 0.
        warnings: What could not be scored, and what is damaged.
    """

    memory_checksum: str
    in_force: Calibration | None
    is_stale: bool
    rule: ScoreRule
    images: tuple[ImageScores, ...]
    thresholds: Mapping[ScoreMode, Calibration]
    promised: PromisedParts
    promises: tuple[Bounds, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What was measured of one memory under one rule.

    Attributes:
        good: Leave-one-out scores by mode.
        suspects: Good images that stand out.
        bad: Scores of bad images by digest and scale; None for a learned one that no other part left a vector for.
    """

    good: Mapping[ScoreMode, LeaveOneOutScores]
    suspects: tuple[Suspect, ...]
    bad: dict[tuple[str, float | None], Mapping[ScoreMode, float] | None] = field(default_factory=dict)


_Scored = list[tuple[StoredImage, Mapping[ScoreMode, float]]]


class ScoreListing:
    """Scores the images of ROIs; safe to call from many threads."""

    def __init__(self, calibrator: Calibrator) -> None:
        self._calibrator = calibrator
        self._kept: OrderedDict[tuple[ModelKey, str, ScoreRule], _Measured] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: ModelKey, request: CalibrationRequest) -> RoiScores:
        """Return the scores of a ROI.

        Args:
            key: The model.
            request: What a calibration would be asked for, but for the mode; without scores.

        Raises:
            MemoryNotFound: If it was never fitted.
            ArtefactCorrupt: If its memory is damaged.
            StorageFailed: If a file cannot be read.
        """
        model = self._calibrator.models.get(key)
        bank = model.fitted_bank(key)
        images = self._calibrator.store.images(key)
        bad = images.labelled("ng")
        rule = self._choice(model, bank, request, "percentile").rule
        measured = self._measured(key, bank, rule)
        scored, warnings, all_tried = self._scores_of_bad(key, bank, rule, bad, measured)
        thresholds = {}
        if all_tried:
            for mode in MODES:
                ng = LabelScores(
                    by_part=worst_by_part(((image, scores[mode]) for image, scores in scored), bank.distinct_parts),
                    images=tuple(image.digest for image, _ in scored),
                    warnings=warnings,
                )
                with suppress(InvalidInput):  # fewer good parts than a calibration takes
                    thresholds[mode] = self._calibrator.of_scores(
                        key,
                        model,
                        request,
                        self._choice(model, bank, request, mode),
                        measured.good[mode],
                        ng if bad else None,
                        suspects=_under(measured.suspects, measured.good[mode]),
                    )
        in_force: Calibration | None = None
        is_stale = False
        try:
            in_force, is_stale = model.calibration, model.stale
        except ArtefactCorrupt as error:
            warnings = (*warnings, error.sentence)
        of_parts = measured.good["max"]
        promised = promised_parts(bank, of_parts)
        n = len(of_parts.by_part)
        return RoiScores(
            memory_checksum=bank.checksum,
            in_force=in_force,
            is_stale=is_stale,
            rule=replace(rule, mode=self._choice(model, bank, request, None).rule.mode),
            images=(*_listed_good(bank, measured, images), *_listed_bad(bank, scored)),
            thresholds=thresholds,
            promised=promised,
            promises=tuple(promised.honest(false_alarm_bounds(n, k, rank_was_chosen=True)) for k in range(n + 1)),
            warnings=warnings,
        )

    def _choice(
        self, model: LoadedModel, bank: MemoryBank, request: CalibrationRequest, mode: ScoreMode | None
    ) -> RuleChoice:
        return choose_rule(
            bank,
            model.last_calibration,
            brings_scores=False,
            score_mode=mode,
            score_percentile=request.score_percentile,
            area_mm2_thr=request.area_mm2_thr,
        )

    def _measured(self, key: ModelKey, bank: MemoryBank, rule: ScoreRule) -> _Measured:
        """Return what is known of a memory under a rule of any mode."""
        case = (key, bank.checksum, rule)
        with self._lock:
            if case in self._kept:
                self._kept.move_to_end(case)
                return self._kept[case]
        # Not under the lock: other ROIs need not wait. Two at once find the same.
        good = leave_one_out_scores_by_mode(bank, rule)
        made = _Measured(good=good, suspects=find_suspects(bank, good[rule.mode], rule))
        with self._lock:
            made = self._kept.setdefault(case, made)
            self._kept.move_to_end(case)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return made

    def _scores_of_bad(
        self, key: ModelKey, bank: MemoryBank, rule: ScoreRule, bad: Sequence[StoredImage], measured: _Measured
    ) -> tuple[_Scored, tuple[str, ...], bool]:
        """Return scores, why some are missing, and whether those that are missing are the images' own fault."""
        if not bad:
            return [], (), True
        try:
            # A call that only reads stores no embeddings.
            scorer = self._calibrator.stored_scores(key, bank, keeps=False)
        except InspectionError as error:
            return [], sentences_of_failed([(each.file_name, error.sentence) for each in bad], len(bad)), False
        found: _Scored = []
        failed: list[tuple[str, str]] = []
        all_tried = True
        for image in bad:
            case = (image.digest, image.mm_per_px)
            try:
                if image.is_damaged or case not in measured.bad:
                    distances = scorer.distances(image, bank)
                    scores = None if distances is None else distances.scores_by_mode(bank, rule)
                    measured.bad[case] = scores
            except InspectionError as error:
                failed.append((image.file_name, error.sentence))
                all_tried = all_tried and is_of_image(error)
                continue
            if (known := measured.bad[case]) is not None:
                found.append((image, known))
        return found, sentences_of_failed(failed, len(bad)), all_tried


def _under(suspects: Sequence[Suspect], scores: LeaveOneOutScores) -> tuple[Suspect, ...]:
    return tuple(replace(each, score=scores.by_image[each.digest]) for each in suspects)


def _listed_good(bank: MemoryBank, measured: _Measured, images: ImageStore) -> list[ImageScores]:
    suspects = {suspect.digest for suspect in measured.suspects}
    twins = {digest for group in bank.near_identical for digest in group}
    listed = []
    for digest, part in zip(bank.image_digests, bank.part_ids, strict=True):
        if digest not in measured.good["max"].by_image:
            continue
        stored = images.get(digest, "ok")
        listed.append(
            ImageScores(
                digest=digest,
                label="ok",
                file_name=None if stored is None else stored.file_name,
                part_id=part,
                scores={mode: measured.good[mode].by_image[digest] for mode in MODES},
                is_suspect=digest in suspects,
                is_near_identical=digest in twins,
            )
        )
    return listed


def _listed_bad(bank: MemoryBank, scored: _Scored) -> list[ImageScores]:
    return [
        ImageScores(
            digest=image.digest,
            label="ng",
            file_name=image.file_name,
            part_id=bank.distinct_parts.get(image.digest, image.part_id),
            scores=scores,
        )
        for image, scores in scored
    ]
