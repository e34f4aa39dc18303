"""Learning what is normal: the use case behind ``/fit_ok``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from backend.artifacts.formats import LearnedFacts
from backend.artifacts.image_store import ImageStore
from backend.artifacts.model_key import ModelKey
from backend.artifacts.stored_image import StoredImage
from backend.calib import Calibration
from backend.errors import ArtefactCorrupt, InspectionError, InvalidInput, Unavailable
from backend.extractors.base import FeatureExtractor, embeddings_key
from backend.extractors.extraction import Extraction
from backend.extractors.loader import ExtractorLoader
from backend.imaging.placement import Placement
from backend.memory_bank.coreset import Progress
from backend.patchcore import MemoryBank
from backend.roi_mask import shape_mask
from backend.scoring.leave_one_out import leave_one_out_scores
from backend.services.calibrating import renewed, rule_of
from backend.services.consistency import check_aspect_ratio, check_extractor, check_mm_per_px
from backend.services.fit_report import FitReport, fit_warnings
from backend.services.fit_request import FitRequest, Upload
from backend.services.fit_steps import FitSteps
from backend.services.learnables import Learnables, keep, memory_of, placement_of
from backend.storage import ArtefactStore
from backend.utils import Stopwatch

_log = logging.getLogger(__name__)


class Fitter:
    """Fits ROIs. Two fits of one ROI at once both count: each merges with what is stored, under the ROI's lock."""

    def __init__(
        self, *, store: ArtefactStore, extractor: ExtractorLoader, extraction: Extraction, max_pixels: int
    ) -> None:
        self._store = store
        self._extractor = extractor
        self._learnables = Learnables(extraction, max_pixels=max_pixels)

    def fit(self, key: ModelKey, request: FitRequest, *, progress: Progress | None = None) -> FitReport:
        """Learn images, store the new memory, and return what came of it.

        Nothing is stored before every image has been decoded and found to fit.

        Args:
            key: The model.
            request: What to learn.
            progress: Told (steps done, steps in all); see ``FitSteps``.

        Raises:
            BadImage, TooLarge: If an upload cannot be used; the sentence names it.
            AspectRatioMismatch, MmPerPxMismatch, ExtractorMismatch: If the ROI was fitted otherwise.
            Conflict: If an upload is kept as a bad image.
            ArtefactCorrupt, NotFound: If a stored image is damaged or gone; the sentence names it.
            ShapeOutsideImage: If the shape covers no pixel.
            WeightsUnavailable: If there is no extractor.
        """
        watch = Stopwatch()
        extractor = self._extractor.get()
        images = self._store.images(key)
        with watch.lap("decode"):
            identified = [(upload, *self._learnables.identify(upload, extractor)) for upload in request.uploads]
        first = self._reference(request, identified, images, extractor)
        for upload, _, placement in identified:
            check_aspect_ratio(first, placement, upload.name)
        shape_mask(request.shape, first.image_hw)
        self._check(self._learned(key, request)[0], request, extractor, first)
        of_dataset = images.labelled("ok") if request.use_dataset else []
        n_uploads = len({digest for _, digest, _ in identified})
        steps = FitSteps(progress, n_uploads + len(of_dataset))
        with watch.lap("extract"):
            fresh = self._learnables.of_uploads(images, identified, extractor, steps.extracting(n_uploads))
            # Before the lock, so that nobody waits for it; under it the rows are there.
            self._learnables.of_stored(images, of_dataset, request, first, extractor, steps.extracting(len(of_dataset)))
        with self._store.lock(key), images.all_or_none():
            known, was_damaged = self._learned(key, request)
            self._check(known, request, extractor, first)
            for upload, digest, _ in identified:
                images.check_label(digest, "ok", upload.name)
            with watch.lap("store"):
                fresh = keep(images, fresh.values(), request.mm_per_px, embeddings_key(extractor))
                stored = self._stored_before(images, known, request)
                learnables = {**self._learnables.of_stored(images, stored, request, first, extractor, None), **fresh}
            with watch.lap("coreset"):
                bank = memory_of(learnables, known, request, extractor, first.image_hw, steps.picks)
            replaced = self._replaced(key, request, bank)
            with watch.lap("write"):
                repeats = len(identified) - len(set(fresh) - set(() if known is None else known.image_digests))
                try:
                    report = self._switch(key, request, known, bank, repeats, watch)
                except BaseException:
                    if self._is_in_force(key, bank):  # and may not outlive a power cut; its images stay with it
                        images.keep()
                    raise
            images.keep()
            if was_damaged:
                report = replace(report, warnings=(*report.warnings, _learned_again(bank, known)))
            self._forget(images, replaced)
        return report

    def _reference(
        self,
        request: FitRequest,
        identified: Sequence[tuple[Upload, str, Placement]],
        images: ImageStore,
        extractor: FeatureExtractor,
    ) -> Placement:
        """Return the placement that all images of the fit must agree with: the first upload's, or the data set's."""
        if identified:
            return identified[0][2]
        stored = images.labelled("ok") if request.use_dataset else []
        if not stored:
            wanted = "The data set has no ok images" if request.use_dataset else "The field images is missing"
            raise InvalidInput(f"{wanted}. Send at least one good image.", details={"field": "images"})
        return placement_of(extractor, stored[0])

    def _learned(self, key: ModelKey, request: FitRequest) -> tuple[MemoryBank | LearnedFacts | None, bool]:
        """Return the memory that this fit adds to, and whether it is damaged.

        Of a damaged one only what it had learned is known, if that: those images are learned again.

        Raises:
            ArtefactCorrupt: If nobody knows any more what it had learned, and the request does not say what to learn.
        """
        if request.mode == "replace":
            return None, False
        try:
            return self._store.load(key).bank, False
        except ArtefactCorrupt as error:
            facts = self._store.learned_facts(key)
            if facts is None and not request.use_dataset:
                raise ArtefactCorrupt(
                    "The stored memory of this ROI is damaged, and so is its list of the images that it had learned. "
                    "Fit again with use_dataset=true to learn all stored good images, or with mode=replace.",
                    details=error.details,
                ) from error
            return facts, True

    def _check(
        self,
        known: MemoryBank | LearnedFacts | None,
        request: FitRequest,
        extractor: FeatureExtractor,
        placement: Placement,
    ) -> None:
        if known is not None:
            check_extractor(known, extractor)
            check_mm_per_px(known, request.mm_per_px)
            check_aspect_ratio(known.placement, placement, request.uploads[0].name if request.uploads else "data set")

    def _stored_before(
        self, images: ImageStore, known: MemoryBank | LearnedFacts | None, request: FitRequest
    ) -> Sequence[StoredImage]:
        """Return the stored images that the fit learns beside its uploads: the data set's, or those learned before."""
        if request.use_dataset:
            return images.labelled("ok")
        learned = (images.get(digest, "ok") for digest in (() if known is None else known.image_digests))
        return [image for image in learned if image is not None]

    def _switch(
        self,
        key: ModelKey,
        request: FitRequest,
        known: MemoryBank | LearnedFacts | None,
        bank: MemoryBank,
        n_duplicates: int,
        watch: Stopwatch,
    ) -> FitReport:
        """Make the memory the ROI's own, with its calibration renewed where that can be done, and report."""
        stored, calibration_damaged = self._calibrations(key)
        previous = next(iter(stored), None)
        own = next((calibration for calibration in stored if calibration.memory_checksum == bank.checksum), None)
        rule = request.rule if previous is None else rule_of(previous, request.rule.blur_sigma)
        with watch.lap("scores"):
            scores = leave_one_out_scores(bank, rule)
        new = None if previous is None or previous is own else renewed(previous, bank, blur_sigma=rule.blur_sigma)
        self._store.save_bank(key, bank, new)
        in_force = new or own
        known_digests = set() if known is None else set(known.image_digests)
        n_new = len(set(bank.image_digests) - known_digests)
        area_mm2_thr = request.area_mm2_thr if previous is None else previous.area_mm2_thr
        warnings = [*fit_warnings(bank, scores, area_mm2_thr)]
        gone = len(known_digests - set(bank.image_digests))
        if calibration_damaged:
            warnings.append("The stored calibration is damaged; until you calibrate again, inspections are refused.")
        if gone:
            warnings.append(f"{gone} learned images were deleted from the store and are no longer part of the memory.")
        if previous is not None and in_force is None:
            warnings.append(
                "The calibration belongs to the memory before this fit and is set aside; until you calibrate again, "
                "inspections have no decision."
            )
        return FitReport(
            bank=bank,
            n_new=n_new,
            n_duplicates=n_duplicates,
            scores=scores,
            calibration="none" if previous is None else "renewed" if new else "kept" if own else "stale",
            threshold=None if in_force is None else in_force.threshold,
            warnings=tuple(warnings),
            timings_ms=watch.timings_ms(),
        )

    def _calibrations(self, key: ModelKey) -> tuple[list[Calibration], bool]:
        """Return the stored calibrations, and whether they are damaged."""
        try:
            return self._store.calibrations(key), False
        except ArtefactCorrupt:
            return [], True

    def _replaced(self, key: ModelKey, request: FitRequest, new: MemoryBank) -> set[str]:
        """Return the images that were learned and that this fit leaves without a use."""
        if request.mode == "add" or request.use_dataset:
            return set()
        try:
            old = self._store.load(key).bank
            others = self._store.learned_by_other_models(key)
        except ArtefactCorrupt:
            return set()  # Nobody knows what else needs them.
        return set() if old is None else set(old.image_digests) - set(new.image_digests) - others

    def _is_in_force(self, key: ModelKey, bank: MemoryBank) -> bool:
        try:
            stored = self._store.load(key).bank
        except InspectionError:
            return False
        return stored is not None and stored.checksum == bank.checksum

    def _forget(self, images: ImageStore, digests: set[str]) -> None:
        try:
            images.delete_all(digests, "ok")
        except Unavailable:
            # The new memory is in force and on disk: the fit has not failed.
            _log.exception("images that are no longer learned could not be deleted")


def _learned_again(bank: MemoryBank, known: MemoryBank | LearnedFacts | None) -> str:
    if known is None:
        return (
            "The memory before this fit was damaged, and so was its list of the images that it had learned: "
            f"{len(bank.image_digests)} images, all good ones that are stored, were learned in their place."
        )
    n_again = len(set(known.image_digests) & set(bank.image_digests))
    return f"The memory before this fit was damaged; {n_again} images that it had learned were learned again."
