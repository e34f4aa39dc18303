"""Learning what is normal: the use case behind ``/fit_ok``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from backend.artifacts.formats import LearnedFacts
from backend.artifacts.image_store import ImageStore
from backend.artifacts.model_key import ModelKey
from backend.artifacts.stored_image import StoredImage
from backend.artifacts.versions import Made
from backend.calib import Calibration
from backend.errors import ArtefactCorrupt, InspectionError, InvalidInput, Unavailable
from backend.extractors.base import FeatureExtractor
from backend.extractors.extraction import Extraction
from backend.extractors.loader import ExtractorLoader
from backend.imaging.placement import Placement
from backend.memory_bank.bank import MemoryBank
from backend.memory_bank.coreset import Progress
from backend.roi_mask import check_covers_cell, shape_mask
from backend.services.before_fit import BeforeFit, warnings_of_fit
from backend.services.calibration import prepare_renewal
from backend.services.consistency import PhysicalSize, check_aspect_ratio, check_extractor, scale_of_image
from backend.services.fit_options import options_in_force, settings_not_taken
from backend.services.fit_request import FitProgress, FitReport, FitRequest
from backend.services.memory_of_images import memory_of
from backend.services.model_cache import ModelCache
from backend.services.renewal import renewal
from backend.services.stored_scores import StoredScores
from backend.services.training_images import TrainingImages
from backend.storage import ArtefactStore
from backend.utils import Stopwatch

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Fitter:
    """Fits ROIs. Two fits of one ROI at once both count: each merges with what is stored, under the ROI's lock."""

    store: ArtefactStore
    models: ModelCache
    extractor: ExtractorLoader
    extraction: Extraction
    max_pixels: int

    def fit(self, key: ModelKey, request: FitRequest, *, progress: Progress | None = None) -> FitReport:
        """Learn images, store the new memory, and return what came of it.

        Nothing is stored before every image has been decoded and found to fit.

        Args:
            key: The model.
            request: What to learn.
            progress: Called with (steps done, steps in all); see ``FitProgress``.

        Raises:
            BadImage, TooLarge: If an upload cannot be used; the sentence names it.
            AspectRatioMismatch, MmPerPxMismatch, ExtractorMismatch: If the ROI was fitted otherwise.
            Conflict: If an upload is kept as a bad image.
            ArtefactCorrupt, NotFound: If a stored image is damaged or gone; the sentence names it.
            ShapeOutsideImage, ShapeTooSmall: If the shape covers no pixel, or less than one patch cell.
            WeightsUnavailable: If there is no extractor.
        """
        watch = Stopwatch()
        extractor = self.extractor.get()
        images = self.store.images(key)
        of_dataset = images.included() if request.use_dataset else []
        steps = FitProgress(progress, len(request.uploads) + len(of_dataset))
        training = TrainingImages(
            images=images,
            extractor=extractor,
            extraction=self.extraction,
            progress=steps,
            max_pixels=self.max_pixels,
            watch=watch,
        )
        first = _reference(training, request, of_dataset)
        mask = shape_mask(request.shape, first.image_hw)
        if request.shape is not None:
            check_covers_cell(request.shape, mask, first.grid_hw)
        before = self._before(key, request)
        size = _checked_size(before.known, request, extractor, first, training)
        training.know(before.memory)
        fitted = first if before.known is None else before.known.placement
        fresh = training.of_uploads(request.uploads, fitted)
        # Before the lock, so that nobody waits for it; under it the rows are there.
        training.of_stored(of_dataset, fitted, size=size)
        scorer = StoredScores(images, extractor, self.extraction, max_pixels=self.max_pixels)
        prepare_renewal(next(iter(before.calibrations), None), scorer, fitted)
        with self.store.lock(key), images.all_or_none():
            before = self._before(key, request)
            if request.use_dataset:  # which may be another one by now
                first = _reference(training, request, images.labelled("ok"))
            size = _checked_size(before.known, request, extractor, first, training)
            training.know(before.memory)
            prepared, fitted = fitted, first if before.known is None else before.known.placement
            if fitted.grid_hw != prepared.grid_hw:  # somebody else's fit came first, and fixed the grid
                fresh = training.of_uploads(request.uploads, fitted)
            for digest, image in fresh.items():
                images.check_label(digest, "ok", image.name)
            with watch.lap("store"):
                fresh = {digest: training.keep(digest, image, request.mm_per_px) for digest, image in fresh.items()}
                stored = training.of_stored(
                    _stored_before(images, before, request), fitted, size=size if request.use_dataset else None
                )
            with watch.lap("coreset"):
                learned_with = replace(request, options=options_in_force(request, before.known))
                bank = memory_of({**stored, **fresh}, before.known, learned_with, extractor, first.image_hw, steps)
            unused = self._unused(key, request, before, bank, images)
            n_repeats = len(request.uploads) - len(set(fresh) - before.known_digests)
            try:
                report = self._switch(key, request, before, bank, n_repeats, scorer, watch, tuple(training.warnings))
            except BaseException:
                if self._is_in_force(key, bank):  # and may not outlive a power cut; its images stay with it
                    images.keep()
                raise
            images.keep()
            self._forget(images, unused)
        return report

    def _before(self, key: ModelKey, request: FitRequest) -> BeforeFit:
        """Return what the ROI has.

        Raises:
            ArtefactCorrupt: If the memory is damaged, nobody knows any more what it had learned, and the request does
                not say what to learn.
        """
        adds = request.mode == "add"
        try:
            stored = self.models.get(key)
        except ArtefactCorrupt as error:
            facts = self.store.learned_facts(key) if adds else None
            if adds and facts is None and not request.use_dataset:
                raise ArtefactCorrupt(
                    "The stored memory of this ROI is damaged, and so is its list of the images that it had learned. "
                    "Fit again with use_dataset=true to learn all stored good images, or with mode=replace.",
                    details=error.details,
                ) from error
            calibrations: Sequence[Calibration] = ()
            calibration_fault = None
            try:
                calibrations = self.store.calibrations(key)
            except ArtefactCorrupt as of_calibration:
                calibration_fault = type(of_calibration)
            return BeforeFit(
                known=facts,
                memory_fault=type(error) if adds else None,
                calibrations=calibrations,
                calibration_fault=calibration_fault,
            )
        return BeforeFit(
            known=stored.bank if adds else None,
            memory=stored.bank,
            calibrations=stored.calibrations,
            calibration_fault=stored.calibration_fault,
        )

    def _switch(
        self,
        key: ModelKey,
        request: FitRequest,
        before: BeforeFit,
        bank: MemoryBank,
        n_repeats: int,
        scorer: StoredScores,
        watch: Stopwatch,
        warnings: Sequence[str],
    ) -> FitReport:
        """Make the memory the ROI's own, with its calibration renewed where that can be done, and report."""
        with watch.lap("scores"):
            found = renewal(bank, before.calibrations, before.memory or before.known, scorer, self.store.images(key))
        with watch.lap("write"):
            made = Made(kind="fit", reason=request.reason)
            of_version = self.store.save_bank(key, bank, found.new, stored=before.calibrations, made=made)
        return FitReport(
            bank=bank,
            n_new=len(set(bank.image_digests) - before.known_digests),
            n_duplicates=n_repeats,
            scores=found.scores,
            learned=found.learned,
            calibration=found.outcome,
            threshold=None if found.in_force is None else found.in_force.threshold,
            warnings=(
                *warnings,
                *found.warnings,
                *warnings_of_fit(before, bank, is_stale=found.outcome == "stale"),
                *settings_not_taken(request, bank),
                *of_version,
            ),
            timings_ms=watch.timings_ms(),
        )

    def _unused(
        self, key: ModelKey, request: FitRequest, before: BeforeFit, bank: MemoryBank, images: ImageStore
    ) -> set[str]:
        """Return the images that were learned and that this fit leaves without a use; none of the data set is."""
        if request.mode == "add" or request.use_dataset or before.memory is None:
            return set()
        try:
            others = self.store.learned_by_other_models(key)
        except ArtefactCorrupt:
            return set()  # Nobody knows what else needs them.
        unused = set(before.memory.image_digests) - set(bank.image_digests) - others
        of_fits = {digest: images.get(digest, "ok") for digest in unused}
        return {digest for digest, image in of_fits.items() if image is not None and not image.is_of_dataset}

    def _is_in_force(self, key: ModelKey, bank: MemoryBank) -> bool:
        try:
            stored = self.store.load(key).bank
        except InspectionError:
            return False
        return stored is not None and stored.checksum == bank.checksum

    def _forget(self, images: ImageStore, digests: set[str]) -> None:
        try:
            images.delete(digests, "ok")
        except Unavailable:
            # The new memory is in force and on disk: the fit has not failed.
            _log.exception("images that are no longer learned could not be deleted")


def _reference(training: TrainingImages, request: FitRequest, of_dataset: Sequence[StoredImage]) -> Placement:
    """Return the placement that all images of the fit must agree with: the first upload's, or the data set's."""
    if request.uploads:
        return training.placements(request.uploads)[0]
    if not of_dataset:
        wanted = "The data set has no ok images" if request.use_dataset else "The field images is missing"
        raise InvalidInput(f"{wanted}. Send at least one good image.", details={"field": "images"})
    of_scale = (image for image in of_dataset if image.mm_per_px in (None, request.mm_per_px))
    return training.placement_of(next(of_scale, of_dataset[0]))


def _checked_size(
    known: MemoryBank | LearnedFacts | None,
    request: FitRequest,
    extractor: FeatureExtractor,
    first: Placement,
    training: TrainingImages,
) -> PhysicalSize:
    """Return the physical size of the ROI, with which the uploads agree."""
    size = PhysicalSize(image_hw=first.image_hw, mm_per_px=request.mm_per_px)
    if known is not None:
        check_extractor(known, extractor)
        name = request.uploads[0].name if request.uploads else "data set"
        check_aspect_ratio(known.placement, first.image_hw, name)
        scale_of_image(PhysicalSize.of(known), size, name)
        size = PhysicalSize.of(known)
    training.check_sizes(request.uploads, size, request.mm_per_px)
    return size


def _stored_before(images: ImageStore, before: BeforeFit, request: FitRequest) -> Sequence[StoredImage]:
    """Return the stored images that the fit learns beside its uploads: the data set's, or those learned before."""
    if request.use_dataset:
        return images.included()
    learned = (images.get(digest, "ok") for digest in (() if before.known is None else before.known.image_digests))
    return [image for image in learned if image is not None]
