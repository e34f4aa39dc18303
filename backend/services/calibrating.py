"""Setting a ROI's threshold: the use case behind ``/calibrate_ng``, and the last step of ``/calibrate_dataset``."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from backend.artifacts.model_key import ModelKey
from backend.artifacts.versions import Made
from backend.calib import OK_PERCENTILE, Calibration, ScoreMode
from backend.errors import Conflict, InvalidInput
from backend.extractors.extraction import Extraction
from backend.extractors.loader import ExtractorLoader
from backend.memory_bank.bank import MemoryBank
from backend.scoring.leave_one_out import LeaveOneOutScores, leave_one_out_scores
from backend.scoring.suspects import Suspect
from backend.services.calibration import StoredUsed, calibrated
from backend.services.consistency import PrecisionCheck, check_extractor, check_memory, check_mm_per_px
from backend.services.learned_images import suspect_warnings
from backend.services.model_cache import LoadedModel, ModelCache
from backend.services.rule_choice import RuleChoice, choose_rule
from backend.services.stored_scores import LabelScores, StoredScores
from backend.storage import ArtefactStore

_CALIBRATION_LOST = (
    "The calibration before this one was damaged: settings that this call does not name (score_mode, "
    "score_percentile, area_mm2_thr) are the defaults of the fit now."
)

_OVERLAP = (
    "ok_percentile has no effect: good and bad scores overlap, and the threshold is where the fewest errors are made."
)


@dataclass(frozen=True, kw_only=True)
class CalibrationRequest:
    """What to calibrate with. A setting left out keeps what is in force; see ``choose_rule``.

    Attributes:
        mm_per_px: Must be that of the fit.
        ok_scores: Scores of good images; None takes the memory's own.
        ng_scores: Scores of bad images; without any, and without ``ok_scores``, those of the stored bad images.
        score_mode: The statistic of the map.
        score_percentile: The percentile of the map.
        area_mm2_thr: The area that counts, mm².
        ok_percentile: Percentile of the OK scores that the threshold is; None for the 99th.
        margin: Factor on what the OK scores call for; None for 1.
        threshold: Set by hand.
        add_ok_scores: Scores of good parts to count beside those that are stored; in a dry run only.
        add_ng_scores: The same of bad parts.
        dry_run: Say what it would be, and store nothing.
        reason: Why, in the words of whoever calibrates; kept with the version.
    """

    mm_per_px: float | None = None
    ok_scores: Sequence[float] | None = None
    ng_scores: Sequence[float] | None = None
    score_mode: ScoreMode | None = None
    score_percentile: float | None = None
    area_mm2_thr: float | None = None
    ok_percentile: float | None = None
    margin: float | None = None
    threshold: float | None = None
    add_ok_scores: Sequence[float] = ()
    add_ng_scores: Sequence[float] = ()
    dry_run: bool = False
    reason: str | None = None

    @property
    def brings_scores(self) -> bool:
        """Whether the caller sends scores."""
        return self.ok_scores is not None or bool(self.ng_scores)


@dataclass(frozen=True, kw_only=True)
class MeasuredScores:
    """How this service has measured the scores of a request.

    Attributes:
        by: The rule.
        with_memories: Checksums of the memories that it was done with.
        of: The stored images, where they are known.
    """

    by: RuleChoice
    with_memories: Collection[str] = ()
    of: StoredUsed | None = None


@dataclass(frozen=True, kw_only=True)
class Calibrator:
    """Sets thresholds, under the lock of the ROI."""

    store: ArtefactStore
    models: ModelCache
    extractor: ExtractorLoader
    extraction: Extraction
    precision: PrecisionCheck
    max_pixels: int
    min_ok_samples: int

    def calibrate(
        self, key: ModelKey, request: CalibrationRequest, measured: MeasuredScores | None = None
    ) -> Calibration:
        """Set a ROI's threshold, and store it unless the request is a dry run.

        Args:
            key: The model.
            request: What to calibrate with.
            measured: How its scores were measured; None for those of a caller, which were measured as the ROI is
                scored.

        Raises:
            MemoryNotFound: If the ROI was never fitted.
            Conflict: If scores were measured with another memory than the ROI's own of now, or under another rule.
            MmPerPxMismatch: If ``mm_per_px`` is not that of the fit.
            ExtractorMismatch, WeightsUnavailable: If bad images are stored that cannot be scored with its memory.
            InvalidInput: As ``calibrated``.
        """
        _check_added(request)
        bank = self.models.get(key).fitted_bank(key)  # before the lock, which makes the ROI's folder
        stored = self._stored(key, bank, request, measured)
        with self.store.lock(key):
            model = self.models.get(key)
            now, last = model.fitted_bank(key), model.last_calibration
            if measured is None and not request.brings_scores and (stored is None or now.checksum != bank.checksum):
                stored = self._stored(key, now, request, None)  # bad images, or another memory, may have come since
            bank = now
            if request.mm_per_px is not None:
                check_mm_per_px(bank, request.mm_per_px)
            check_memory(bank, () if measured is None else measured.with_memories)
            choice = self._choice(bank, last, request, is_measured=measured is not None)
            if measured is not None:
                if choice.rule != measured.by.rule:
                    raise Conflict(
                        "The ROI was calibrated while its images were inspected, so that they would be scored "
                        "otherwise by now. Send the call again."
                    )
                choice = measured.by
            stored_ng: LabelScores | None = None
            if stored is not None:
                stored_ng = stored.scores(stored.images.labelled("ng"), bank, choice.rule)
            scores = leave_one_out_scores(bank, choice.rule)
            calibration = self.of_scores(key, model, request, choice, scores, stored_ng, measured)
            if not request.dry_run:
                made = Made(kind="calibration", reason=request.reason or None)
                of_version = self.store.save_calibration(key, calibration, stored=model.calibrations, made=made)
                calibration = replace(calibration, warnings=(*calibration.warnings, *of_version))
        return calibration

    def of_scores(
        self,
        key: ModelKey,
        model: LoadedModel,
        request: CalibrationRequest,
        choice: RuleChoice,
        scores: LeaveOneOutScores,
        stored_ng: LabelScores | None,
        measured: MeasuredScores | None = None,
        suspects: tuple[Suspect, ...] | None = None,
    ) -> Calibration:
        """Return what a request sets; nothing is stored.

        Args:
            key: The model.
            model: Its memory, and what was calibrated before.
            request: What to calibrate with.
            choice: How maps become scores from now on.
            scores: The memory's own, under ``choice.rule``.
            stored_ng: Those of the stored bad images; None where there are none, or scores are given.
            measured: As of ``calibrate``.
            suspects: As of ``examine``.

        Raises:
            InvalidInput: As ``calibrated``.
        """
        bank = model.fitted_bank(key)
        doubts: Iterable[str] = ()
        if request.ok_scores is None:
            doubts = suspect_warnings(bank, scores, choice.rule, self.store.images(key), suspects)
        if request.add_ng_scores:
            known = stored_ng or LabelScores()
            stored_ng = replace(known, by_part=(*known.by_part, *request.add_ng_scores))
        calibration = calibrated(
            bank,
            replace(scores, by_part=(*scores.by_part, *request.add_ok_scores)),
            rule=choice.rule,
            ok_scores=request.ok_scores,
            ng_scores=request.ng_scores,
            stored_ng=stored_ng,
            scores_from="request" if measured is None else "dataset",
            of_dataset=None if measured is None else measured.of,
            ok_percentile=OK_PERCENTILE if request.ok_percentile is None else request.ok_percentile,
            margin=1.0 if request.margin is None else request.margin,
            threshold=request.threshold,
            n_added=len(request.add_ok_scores),
            min_parts=self.min_ok_samples,
            warnings=(*choice.warnings, *_without_effect(request), *doubts),
        )
        if calibration.method == "fewest_errors" and request.ok_percentile is not None:
            calibration = replace(calibration, warnings=(*calibration.warnings, _OVERLAP))
        if model.calibration_fault is not None:
            calibration = replace(calibration, warnings=(*calibration.warnings, _CALIBRATION_LOST))
        return calibration

    def stored_scores(self, key: ModelKey, bank: MemoryBank, *, keeps: bool = True) -> StoredScores:
        """Return what scores the stored images of a ROI with its memory.

        Raises:
            ExtractorMismatch, WeightsUnavailable: If the extractor of now cannot.
        """
        extractor = self.extractor.get()
        check_extractor(bank, extractor)
        self.precision.check(key, bank, extractor)
        images = self.store.images(key)
        return StoredScores(images, extractor, self.extraction, max_pixels=self.max_pixels, keeps=keeps)

    def _stored(
        self, key: ModelKey, bank: MemoryBank, request: CalibrationRequest, measured: MeasuredScores | None
    ) -> StoredScores | None:
        """Return what scores the bad images that are stored; None where there are none, or scores are given.

        Embeddings of the stored images that the calibration rests on are at hand afterwards: its renewal needs them,
        and inspections under shapes. Not under the lock: nobody waits for it.
        """
        images = self.store.images(key)
        if measured is not None:
            if measured.of is None or request.dry_run:
                return None
            wanted = [images.get(digest, "ng") for digest in measured.of.ng_images]
            wanted += [images.get(digest, "ok") for digest in measured.of.ok_images if bank.part_of(digest) is None]
            self.stored_scores(key, bank).prepare([image for image in wanted if image is not None], bank.placement)
            return None
        bad = [] if request.brings_scores else images.labelled("ng")
        if not bad:
            return None
        stored = self.stored_scores(key, bank, keeps=not request.dry_run)
        stored.prepare(bad, bank.placement)
        return stored

    def _choice(
        self, bank: MemoryBank, last: Calibration | None, request: CalibrationRequest, *, is_measured: bool
    ) -> RuleChoice:
        return choose_rule(
            bank,
            last,
            brings_scores=not is_measured and request.brings_scores,
            score_mode=request.score_mode,
            score_percentile=request.score_percentile,
            area_mm2_thr=request.area_mm2_thr,
        )


def _check_added(request: CalibrationRequest) -> None:
    """Raise InvalidInput if scores are to be added where that means nothing."""
    for name in ("add_ok_scores", "add_ng_scores"):
        if getattr(request, name) and (request.brings_scores or not request.dry_run):
            raise InvalidInput(
                f"{name} says what further stored images would do: send it with dry_run=true, and without ok_scores "
                "and ng_scores. To have them count, store the images.",
                details={"field": name},
            )


def _without_effect(request: CalibrationRequest) -> list[str]:
    if request.dry_run and request.reason:
        return ["reason has no effect: dry_run stores nothing.", *_without_effect(replace(request, reason=None))]
    if request.threshold is None:
        return []
    sent = [name for name in ("ok_percentile", "margin") if getattr(request, name) is not None]
    return [f"{name}={getattr(request, name):g} has no effect: the threshold is set by hand." for name in sent]
