"""Making a memory anew from the images that it had learned: the use case behind ``/refit`` and ``roi-inspector refit``.

For a ROI whose memory this service cannot read (of an older format, damaged) or may not read (of another extractor).
Images, part ids, shape, scale, fit options and the settings of the calibration stay as they were.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from backend.artifacts.formats import LearnedFacts
from backend.artifacts.image_store import ImageStore
from backend.artifacts.model_key import ModelKey
from backend.artifacts.older_formats import fit_options, older_calibrations
from backend.artifacts.stored_image import FILE_NAME_DIGITS, StoredImage
from backend.artifacts.versions import Made
from backend.calib import Calibration
from backend.errors import ArtefactCorrupt, ArtefactOutdated, NotFound, Unavailable
from backend.extractors.base import FeatureExtractor, embeddings_key
from backend.memory_bank.bank import FitOptions, MemoryBank
from backend.memory_bank.coreset import Progress
from backend.services.calibration import prepare_renewal
from backend.services.fit_request import FitProgress, FitRequest
from backend.services.fitting import Fitter
from backend.services.memory_of_images import memory_of
from backend.services.model_cache import LoadedModel
from backend.services.renewal import Outcome, renewal
from backend.services.stored_scores import StoredScores
from backend.services.training_images import TrainingImages
from backend.utils import Stopwatch

_log = logging.getLogger(__name__)

_NAMED = 10
"""Missing images that a warning names."""


@dataclass(frozen=True, kw_only=True)
class RefitReport:
    """What came of a refit.

    Attributes:
        bank: The new memory; None where nothing was to be done.
        calibration: What became of the ROI's calibration: ``none`` was there, it was ``kept`` (the memory is the same),
            ``renewed`` with the settings that it had, or is ``stale``.
        threshold: The threshold now in force, if any.
        set_aside: The calibration that could not be renewed.
    """

    bank: MemoryBank | None = None
    calibration: Outcome | None = None
    threshold: float | None = None
    set_aside: Calibration | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Before:
    """What a ROI has before a refit.

    Attributes:
        known: The memory, or what is certain of one that cannot be read.
        calibrations: Newest first; also those of an older format.
        calibration_fault: Why nothing can be read of what is stored of a calibration.
        calibrations_are_older: True when ``calib.json`` is of an older format, and could be read all the same.
    """

    known: MemoryBank | LearnedFacts
    calibrations: Sequence[Calibration]
    calibration_fault: type[ArtefactCorrupt] | None = None
    calibrations_are_older: bool = False

    def is_usable_by(self, extractor: FeatureExtractor) -> bool:
        """Return whether the ROI can be inspected with an extractor as it is."""
        of_now = isinstance(self.known, MemoryBank) and self.known.extractor_id == extractor.extractor_id
        return of_now and not self.calibrations_are_older


@dataclass(frozen=True, kw_only=True)
class Refitter:
    """Makes memories anew.

    Attributes:
        fitter: What learns; its parts are used here as well.
        defaults: What a memory is fitted with where the one before does not say it.
    """

    fitter: Fitter
    defaults: FitOptions

    def n_images_to_learn(self, key: ModelKey, *, force: bool = False) -> int:
        """Return how many images a refit would learn: 0 where the memory is up to date.

        Args:
            key: The model.
            force: Learn also what is up to date.

        Raises:
            MemoryNotFound, ArtefactCorrupt, NotFound, WeightsUnavailable: As ``refit``.
        """
        before, extractor = self._before(key), self.fitter.extractor.get()
        if not force and before.is_usable_by(extractor):
            return 0
        return len(_still_stored(self.fitter.store.images(key), before, key))

    def refit(self, key: ModelKey, *, force: bool = False, progress: Progress | None = None) -> RefitReport:
        """Learn again what a model had learned, and return what came of it.

        The old memory serves on until the new one takes its place in one step.

        Args:
            key: The model.
            force: Learn also what is up to date.
            progress: Called with (steps done, steps in all); see ``FitProgress``.

        Raises:
            MemoryNotFound: If the ROI was never fitted.
            ArtefactCorrupt: If nobody knows any more what it had learned, or a stored image is damaged.
            NotFound: If none of its images is stored any more, or the bytes of one are gone.
            AspectRatioMismatch: If the images do not share one grid with the extractor of now.
            Unavailable: If it cannot be done now; ``WeightsUnavailable`` without an extractor.
        """
        extractor, store = self.fitter.extractor.get(), self.fitter.store
        before = self._before(key)
        if not force and before.is_usable_by(extractor):
            return RefitReport()
        images = store.images(key)
        learned = _still_stored(images, before, key)
        steps = FitProgress(progress, len(learned))
        training = TrainingImages(
            images=images,
            extractor=extractor,
            extraction=self.fitter.extraction,
            progress=steps,
            max_pixels=self.fitter.max_pixels,
            watch=Stopwatch(),
        )
        # Before the lock, so that nobody waits for it; under it the rows are there.
        training.know(before.known)
        first = extractor.placement(before.known.placement.image_hw)
        training.of_stored(learned, first)
        scorer = StoredScores(images, extractor, self.fitter.extraction, max_pixels=self.fitter.max_pixels)
        prepare_renewal(next(iter(before.calibrations), None), scorer, first)
        with store.lock(key):
            before = self._before(key)
            if not force and before.is_usable_by(extractor):
                return RefitReport()  # somebody else was faster
            learned = _still_stored(images, before, key)
            training.know(before.known)
            first = extractor.placement(before.known.placement.image_hw)
            bank = memory_of(
                training.of_stored(learned, first),
                before.known,
                self._request(before.known),
                extractor,
                first.image_hw,
                steps,
            )
            report = self._switch(key, before, bank, scorer)
            try:
                images.keep_embeddings_of(embeddings_key(extractor))
            except Unavailable:  # The new memory is in force and on disk: the refit has not failed.
                _log.exception("embeddings of another extractor could not be deleted")
        return report

    def _request(self, known: MemoryBank | LearnedFacts) -> FitRequest:
        options = known.options if isinstance(known, MemoryBank) else fit_options(known.settings, self.defaults)
        return FitRequest(
            uploads=(), mm_per_px=known.mm_per_px, shape=None, mode="add", use_dataset=False, options=options
        )

    def _before(self, key: ModelKey) -> _Before:
        """Return what a model has.

        Raises:
            MemoryNotFound: If it was never fitted.
            ArtefactCorrupt: If the memory is damaged, and nobody knows any more what it had learned.
        """
        store = self.fitter.store
        known: MemoryBank | LearnedFacts | None
        try:
            known = LoadedModel(**vars(store.load(key))).fitted_bank(key)
        except ArtefactCorrupt as error:
            known = store.learned_facts(key)
            if known is None:
                raise ArtefactCorrupt(
                    "The stored memory of this ROI is damaged, and so is its list of the images that it had learned. "
                    "Fit it with /fit_ok and use_dataset=true to learn all stored good images, or with mode=replace.",
                    details=error.details,
                ) from error
        try:
            return _Before(known=known, calibrations=store.calibrations(key))
        except ArtefactOutdated:
            older = older_calibrations(store.calib_data(key) or b"")
            if older:
                return _Before(known=known, calibrations=older, calibrations_are_older=True)
            return _Before(known=known, calibrations=(), calibration_fault=ArtefactOutdated)
        except ArtefactCorrupt as error:
            return _Before(known=known, calibrations=(), calibration_fault=type(error))

    def _switch(self, key: ModelKey, before: _Before, bank: MemoryBank, scorer: StoredScores) -> RefitReport:
        """Make the memory the model's own, with its calibration renewed where that can be done, and report."""
        previous = next(iter(before.calibrations), None)
        found = renewal(
            bank,
            before.calibrations,
            before.known,
            scorer,
            self.fitter.store.images(key),
            can_renew=previous is not None and _is_measurable(previous),
        )
        # One of an older format that cannot be renewed is written in this one: it still says what the next is to be.
        carried = previous if before.calibrations_are_older else None
        of_version = self.fitter.store.save_bank(
            key, bank, found.new or carried, stored=before.calibrations, made=Made(kind="refit")
        )
        set_aside = previous if found.in_force is None else None
        n_bad_images = len(scorer.images.labelled("ng"))
        return RefitReport(
            bank=bank,
            calibration=found.outcome,
            threshold=None if found.in_force is None else found.in_force.threshold,
            set_aside=set_aside,
            warnings=(*_warnings_about(before, bank, set_aside, n_bad_images), *found.warnings, *of_version),
        )


def _still_stored(images: ImageStore, before: _Before, key: ModelKey) -> list[StoredImage]:
    """Return what is stored of the images that a model had learned.

    Raises:
        NotFound: If it is nothing.
    """
    found = [images.get(digest, "ok") for digest in before.known.image_digests]
    learned = [image for image in found if image is not None]
    if not learned:
        raise NotFound(
            f"None of the {len(found)} images that {key} had learned is stored any more. Fit it with new good images "
            "and mode=replace.",
            details={"role_id": key.role_id, "roi_id": key.roi_id, "model_key": key.model_key},
        )
    return learned


def _is_measurable(calibration: Calibration) -> bool:
    """Return whether the images that are stored can say what a calibration is with the new memory."""
    if calibration.ok_scores_from == "dataset" and not calibration.ok_images:
        return False
    return not calibration.rests_on_sent_scores


def _warnings_about(
    before: _Before, bank: MemoryBank, set_aside: Calibration | None, n_bad_images: int
) -> Iterable[str]:
    missing = sorted(set(before.known.image_digests) - set(bank.image_digests))
    if missing:
        names = ", ".join(digest[:FILE_NAME_DIGITS] for digest in missing[:_NAMED])
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        yield (
            f"{len(missing)} of the {len(before.known.image_digests)} images that this ROI had learned are no longer "
            f"stored and were not learned again: {names}{more} (the end of their file names)."
        )
    if before.calibration_fault is not None:
        is_older = issubclass(before.calibration_fault, ArtefactOutdated)
        yield (
            f"The stored calibration is {'of an older format' if is_older else 'damaged'} and cannot be read; until "
            "you calibrate again, inspections are refused."
        )
    if set_aside is not None:
        yield _of_set_aside(set_aside, n_bad_images)


def _of_set_aside(calibration: Calibration, n_bad_images: int) -> str:
    sources = {
        "stored": f"the scores of {calibration.n_ok} good parts",
        "request": f"{calibration.n_ok} OK scores that were sent",
        "dataset": f"{calibration.n_ok} OK scores of the data set",
    }
    if calibration.method == "manual":
        return (
            f"The threshold {calibration.threshold:.4g} was set by hand, for scores of another extractor. It is set "
            "aside; until you calibrate again, inspections have no decision."
        )
    n_ng = calibration.n_ng
    of_bad = f" and {n_ng} NG score{'' if n_ng == 1 else 's'}" if n_ng else ""
    return (
        f"The threshold {calibration.threshold:.4g} rested on {sources[calibration.ok_scores_from]}{of_bad}, measured "
        "with the memory before. It is set aside; until you calibrate again, inspections have no decision. "
        f"/calibrate_dataset calibrates with the stored images (bad ones stored: {n_bad_images}), /calibrate_ng with "
        "new scores."
    )
