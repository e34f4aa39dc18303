"""Learning what is normal: the use case behind ``/fit_ok``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np

from backend.calib import Calibration
from backend.calibrating import renewed, rule_of
from backend.consistency import check_aspect_ratio, check_extractor, check_mm_per_px, check_same_scale
from backend.coreset import Progress
from backend.embedding_rows import EmbeddingRows
from backend.errors import ArtefactCorrupt, InvalidInput
from backend.extraction import Extraction
from backend.extractor_loader import ExtractorLoader
from backend.extractors import FeatureExtractor, embeddings_key
from backend.fit_report import FitReport, fit_warnings
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
            progress: Told (images extracted, images in all).

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
        images = ImageStore(self._store.roi_folder(key))
        with watch.lap("decode"):
            identified = [(upload, *self._identify(upload, extractor)) for upload in request.uploads]
        first = self._reference(request, identified, images, extractor)
        for upload, _, placement in identified:
            check_aspect_ratio(first, placement, upload.name)
        shape_mask(request.shape, first.image_hw)
        self._check(self._learned(key, request.mode), request, extractor, first)
        with watch.lap("extract"):
            fresh = self._extract(images, identified, extractor, progress)
            if request.use_dataset:  # before the lock, so that nobody waits for it; under it the rows are there
                self._learnables(images, images.labelled("ok"), request, first, extractor, progress)
        with self._store.lock(key):
            known = self._learned(key, request.mode)
            self._check(known, request, extractor, first)
            for upload, digest, _ in identified:
                images.check_label(digest, "ok", upload.name)
            with watch.lap("store"):
                fresh = _keep(images, fresh.values(), request.mm_per_px, embeddings_key(extractor))
                stored = self._stored_before(images, known, request)
                learnables = {**self._learnables(images, stored, request, first, extractor, None), **fresh}
            with watch.lap("coreset"):
                bank = _memory(learnables, known, request, extractor, first.image_hw)
            replaced = self._replaced(key, request)
            with watch.lap("write"):
                repeats = len(identified) - len(set(fresh) - set(() if known is None else known.image_digests))
                report = self._switch(key, request, known, bank, repeats, watch)
            for digest in replaced - set(bank.image_digests) - self._store.learned_by_other_models(key):
                images.delete(digest, "ok")
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

    def _learned(self, key: ModelKey, mode: Mode) -> MemoryBank | None:
        """Return the memory that this fit adds to."""
        return self._store.load(key).bank if mode == "add" else None

    def _check(
        self, known: MemoryBank | None, request: FitRequest, extractor: FeatureExtractor, placement: Placement
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
        self, images: ImageStore, known: MemoryBank | None, request: FitRequest
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
        known: MemoryBank | None,
        bank: MemoryBank,
        n_duplicates: int,
        watch: Stopwatch,
    ) -> FitReport:
        """Make the memory the ROI's own, with its calibration renewed where that can be done, and report."""
        stored = self._calibrations(key)
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

    def _calibrations(self, key: ModelKey) -> list[Calibration]:
        try:
            return self._store.calibrations(key)
        except ArtefactCorrupt:
            return []

    def _replaced(self, key: ModelKey, request: FitRequest) -> set[str]:
        """Return the images that were learned and that this fit may leave without a use."""
        if request.mode == "add" or request.use_dataset:
            return set()
        try:
            bank = self._store.load(key).bank
        except ArtefactCorrupt:
            return set()
        return set() if bank is None else set(bank.image_digests)


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
    known: MemoryBank | None,
    request: FitRequest,
    extractor: FeatureExtractor,
    upload_hw: tuple[int, int],
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
        seed=request.seed,
        k=request.k,
        mm_per_px=request.mm_per_px if known is None else known.mm_per_px,
        precision=extractor.precision,
    )
