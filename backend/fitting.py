"""Learning what is normal: the use case behind ``/fit_ok``."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np

from backend.artefacts import LearnedFacts
from backend.calib import Calibration
from backend.calibrating import renewed, rule_of
from backend.consistency import check_aspect_ratio, check_extractor, check_mm_per_px, check_same_scale
from backend.coreset import CoresetMethod, Progress
from backend.embedding_rows import EmbeddingRows
from backend.errors import ArtefactCorrupt, InspectionError, InvalidInput, Unavailable
from backend.extraction import Extraction
from backend.extractor_loader import ExtractorLoader
from backend.extractors import FeatureExtractor, embeddings_key
from backend.fit_report import FitReport, fit_warnings
from backend.fit_steps import FitSteps
from backend.image_codec import decode_image, image_suffix, pixel_digest
from backend.image_store import ImageStore, StoredImage, safe_stem
from backend.model_key import ModelKey
from backend.patchcore import MemoryBank, PatchGrid, learn
from backend.placement import Placement
from backend.roi_mask import Shape, scale_shape, shape_fields, shape_from_fields, shape_mask
from backend.scoring import ScoreRule, leave_one_out_scores
from backend.storage import ArtefactStore
from backend.utils import Stopwatch, sha256_hex
from backend.whitening import fit_whitening

_log = logging.getLogger(__name__)

Mode = Literal["add", "replace"]


@dataclass(frozen=True, kw_only=True)
class Upload:
    """One uploaded image: its name, its bytes, and the physical part that it shows, if the client said."""

    name: str
    data: bytes = field(repr=False)
    part_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """What to learn.

    Attributes:
        uploads: Images; at least one, unless ``use_dataset``.
        mm_per_px: Millimetres per pixel of the images.
        shape: What counts, in pixels of the first upload; None keeps what the ROI has learned with.
        mode: ``add`` to what was learned, or ``replace`` it.
        use_dataset: Learn exactly the ``ok`` images of the data set, and the uploads.
        coreset_rate: In (0, 1].
        coreset_method: How the coreset is picked.
        k: Neighbours that a distance is the mean of.
        seed: Draws the coreset's first centre.
        rule: How maps become scores, for a ROI that was never calibrated.
        area_mm2_thr: The smallest region that matters, mm², for a ROI that was never calibrated.
    """

    uploads: Sequence[Upload]
    mm_per_px: float
    shape: Shape | None
    mode: Mode
    use_dataset: bool
    coreset_rate: float
    coreset_method: CoresetMethod
    k: int
    seed: int
    rule: ScoreRule
    area_mm2_thr: float


@dataclass(frozen=True, kw_only=True)
class _Learnable:
    """One image on its way into a memory; ``data`` is None when the store has it already."""

    digest: str
    part_id: str
    grid: PatchGrid
    name: str = ""
    data: bytes | None = None


class Fitter:
    """Fits ROIs. Two fits of one ROI at once both count: each merges with what is stored, under the ROI's lock."""

    def __init__(
        self, *, store: ArtefactStore, extractor: ExtractorLoader, extraction: Extraction, max_pixels: int
    ) -> None:
        self._store = store
        self._extractor = extractor
        self._rows = EmbeddingRows(extraction, max_pixels=max_pixels)
        self._max_pixels = max_pixels

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
            identified = [(upload, *self._identify(upload, extractor)) for upload in request.uploads]
        first = self._reference(request, identified, images, extractor)
        for upload, _, placement in identified:
            check_aspect_ratio(first, placement, upload.name)
        shape_mask(request.shape, first.image_hw)
        self._check(self._learned(key, request)[0], request, extractor, first)
        of_dataset = images.labelled("ok") if request.use_dataset else []
        n_uploads = len({digest for _, digest, _ in identified})
        steps = FitSteps(progress, n_uploads + len(of_dataset))
        with watch.lap("extract"):
            fresh = self._extract(images, identified, extractor, steps.extracting(n_uploads))
            # Before the lock, so that nobody waits for it; under it the rows are there.
            self._learnables(images, of_dataset, request, first, extractor, steps.extracting(len(of_dataset)))
        with self._store.lock(key), images.all_or_none():
            known, was_damaged = self._learned(key, request)
            self._check(known, request, extractor, first)
            for upload, digest, _ in identified:
                images.check_label(digest, "ok", upload.name)
            with watch.lap("store"):
                fresh = _keep(images, fresh.values(), request.mm_per_px, embeddings_key(extractor))
                stored = self._stored_before(images, known, request)
                learnables = {**self._learnables(images, stored, request, first, extractor, None), **fresh}
            with watch.lap("coreset"):
                bank = _memory(learnables, known, request, extractor, first.image_hw, steps.picks)
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
        return _placement(extractor, stored[0])

    def _identify(self, upload: Upload, extractor: FeatureExtractor) -> tuple[str, Placement]:
        image = decode_image(upload.data, max_pixels=self._max_pixels, name=upload.name)
        return pixel_digest(image), extractor.placement((image.shape[0], image.shape[1]))

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

    def _extract(
        self,
        images: ImageStore,
        identified: Sequence[tuple[Upload, str, Placement]],
        extractor: FeatureExtractor,
        progress: Progress | None,
    ) -> dict[str, _Learnable]:
        sources = {digest: (upload.name, partial(_data_of, upload)) for upload, digest, _ in identified}
        parts = {digest: upload.part_id for upload, digest, _ in identified if upload.part_id}
        rows = self._rows.of(images, sources, extractor, progress, keep=False)
        return {
            digest: _Learnable(
                digest=digest,
                part_id=parts.get(digest, digest),
                grid=PatchGrid(embeddings=rows[digest], placement=placement, extractor_id=extractor.extractor_id),
                name=upload.name,
                data=upload.data,
            )
            for upload, digest, placement in identified
        }

    def _stored_before(
        self, images: ImageStore, known: MemoryBank | LearnedFacts | None, request: FitRequest
    ) -> Sequence[StoredImage]:
        """Return the stored images that the fit learns beside its uploads: the data set's, or those learned before."""
        if request.use_dataset:
            return images.labelled("ok")
        learned = (images.get(digest, "ok") for digest in (() if known is None else known.image_digests))
        return [image for image in learned if image is not None]

    def _learnables(
        self,
        images: ImageStore,
        stored: Sequence[StoredImage],
        request: FitRequest,
        first: Placement,
        extractor: FeatureExtractor,
        progress: Progress | None,
    ) -> dict[str, _Learnable]:
        for image in stored:
            check_aspect_ratio(first, _placement(extractor, image), image.file_name)
            if request.use_dataset:
                check_same_scale(request.mm_per_px, image.mm_per_px, image.file_name)
        sources = {image.digest: (image.file_name, partial(images.read, image)) for image in stored}
        rows = self._rows.of(images, sources, extractor, progress, keep=True)
        learnables = {}
        for image in stored:
            grid = PatchGrid(
                embeddings=rows[image.digest],
                placement=_placement(extractor, image),
                extractor_id=extractor.extractor_id,
            )
            learnables[image.digest] = _Learnable(digest=image.digest, part_id=image.part_id, grid=grid)
        return learnables

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


def _data_of(upload: Upload) -> bytes:
    return upload.data


def _placement(extractor: FeatureExtractor, image: StoredImage) -> Placement:
    if image.is_damaged:
        raise ArtefactCorrupt(f"The stored image {image.file_name!r} is damaged. Upload it again, or delete it.")
    return extractor.placement(image.image_hw)


def _keep(images: ImageStore, fresh: Iterable[_Learnable], mm_per_px: float, made_by: str) -> dict[str, _Learnable]:
    """Store uploads, and return them by digest with the parts that the store knows them by."""
    kept = {}
    for image in fresh:
        if image.data is not None:
            images.put_embeddings(image.digest, made_by, image.grid.embeddings)
            stored = StoredImage(
                digest=image.digest,
                label="ok",
                name=safe_stem(image.name),
                part_id=image.part_id,
                image_hw=image.grid.placement.image_hw,
                mm_per_px=mm_per_px,
                bytes_sha256=sha256_hex(image.data),
                suffix=image_suffix(image.data),
            )
            kept[image.digest] = replace(image, part_id=images.put(stored, image.data).part_id)
    return kept


def _memory(
    learnables: Mapping[str, _Learnable],
    known: MemoryBank | LearnedFacts | None,
    request: FitRequest,
    extractor: FeatureExtractor,
    upload_hw: tuple[int, int],
    progress: Progress,
) -> MemoryBank:
    first = learnables[min(learnables)].grid.placement
    shape: Shape | None = None
    if request.shape is not None:
        shape = scale_shape(request.shape, upload_hw, first.image_hw)
    elif known is not None and known.shape is not None:
        shape = scale_shape(shape_from_fields(known.shape), known.placement.image_hw, first.image_hw)
    mask_cells = first.cell_coverage(shape_mask(shape, first.image_hw)).reshape(-1) > 0
    whitening = None
    if extractor.whitens:
        rows = [learnables[digest].grid.embeddings[mask_cells] for digest in sorted(learnables)]
        whitening = fit_whitening(np.concatenate(rows))
    return learn(
        {digest: image.grid for digest, image in learnables.items()},
        part_ids={digest: image.part_id for digest, image in learnables.items()},
        mask_cells=mask_cells,
        shape=None if shape is None else shape_fields(shape),
        whitening=whitening,
        coreset_rate=request.coreset_rate,
        coreset_method=request.coreset_method,
        seed=request.seed,
        k=request.k,
        mm_per_px=request.mm_per_px if known is None else known.mm_per_px,
        precision=extractor.precision,
        progress=progress,
    )
