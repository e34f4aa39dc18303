"""Inspecting an image, and the face of the other use cases. No HTTP, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from backend.artifacts.model_key import ModelKey
from backend.calib import Calibration
from backend.extractors.base import FeatureExtractor
from backend.extractors.device_queue import DeviceQueue
from backend.extractors.extraction import Extraction, Rows
from backend.extractors.loader import ExtractorLoader
from backend.imaging.image_codec import decode_image, pixel_digest, to_bgr_uint8
from backend.imaging.placement import Placement
from backend.memory_bank.alignment import Aligned
from backend.memory_bank.bank import FitOptions, MemoryBank
from backend.memory_bank.coreset import Progress
from backend.roi_mask import Shape, shape_fields
from backend.scoring.inspection import (
    NO_OVERRIDES,
    Inspection,
    Overrides,
    ScoringTerms,
    inspected_mask,
    judge,
    scoring_terms,
)
from backend.services.calibrating import CalibrationRequest, Calibrator, MeasuredScores
from backend.services.consistency import (
    PhysicalSize,
    PrecisionCheck,
    check_aspect_ratio,
    check_extractor,
    check_width,
    on_fitted_grid,
    scale_of_image,
)
from backend.services.fit_request import FitReport, FitRequest, Mode, Upload
from backend.services.fitting import Fitter
from backend.services.image_checking import check_image
from backend.services.model_cache import LoadedModel, ModelCache
from backend.services.nearest_good import with_nearest_good
from backend.services.refitting import Refitter
from backend.services.scores import RoiScores, ScoreListing
from backend.services.version_comparison import Comparer
from backend.services.versions import Versions
from backend.storage import ArtefactStore
from backend.utils import Stopwatch

ImageCheckMode = Literal["reject", "warn", "off"]


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What holds where a request or a ROI says nothing; units as in ``Settings``."""

    options: FitOptions
    max_pixels: int
    min_ok_samples: int
    image_check: ImageCheckMode


class InspectionService:
    """The service without its HTTP face; safe to call from many threads."""

    def __init__(
        self,
        *,
        store: ArtefactStore,
        extractor: ExtractorLoader,
        device: DeviceQueue,
        defaults: Defaults,
        cache_max_entries: int,
        batch_wait_ms: float = 0.0,
    ) -> None:
        self.defaults = defaults
        self.store = store
        self.extractor = extractor
        self._device = device
        self._models = ModelCache(store, cache_max_entries)
        self._extraction = Extraction(device, batch_wait_ms=batch_wait_ms)
        self._precision = PrecisionCheck(store, self._extraction, max_pixels=defaults.max_pixels)
        self._fitter = Fitter(
            store=store,
            models=self._models,
            extractor=extractor,
            extraction=self._extraction,
            max_pixels=defaults.max_pixels,
        )
        self.calibrator = Calibrator(
            store=store,
            models=self._models,
            extractor=extractor,
            extraction=self._extraction,
            precision=self._precision,
            max_pixels=defaults.max_pixels,
            min_ok_samples=defaults.min_ok_samples,
        )
        self._score_listing = ScoreListing(self.calibrator)
        self.versions = Versions(store=store, extractor=extractor, precision=self._precision)
        self.comparer = Comparer(versions=self.versions, extraction=self._extraction, max_pixels=defaults.max_pixels)
        self.refitter = Refitter(fitter=self._fitter, defaults=defaults.options)

    def start(self) -> None:
        """Begin to get the extractor ready."""
        self.extractor.start()

    def close(self) -> None:
        """Finish what is on the device and take nothing new."""
        self._device.close()

    def describe(self, key: ModelKey) -> LoadedModel:
        """Return what is stored of a model.

        Raises:
            ArtefactCorrupt: If a stored file is damaged.
        """
        return self._models.get(key)

    def fit_ok(
        self,
        key: ModelKey,
        uploads: Sequence[Upload],
        *,
        mm_per_px: float,
        shape: Shape | None = None,
        mode: Mode = "add",
        use_dataset: bool = False,
        coreset_rate: float | None = None,
        aligned: Aligned | None = None,
        reason: str | None = None,
        progress: Progress | None = None,
    ) -> FitReport:
        """Learn good images; see ``Fitter.fit``."""
        request = FitRequest(
            uploads=uploads,
            mm_per_px=mm_per_px,
            shape=shape,
            mode=mode,
            use_dataset=use_dataset,
            options=self.defaults.options,
            coreset_rate=coreset_rate,
            aligned=aligned,
            reason=reason,
        )
        return self._fitter.fit(key, request, progress=progress)

    def calibrate(self, key: ModelKey, *, measured: MeasuredScores | None = None, **request: Any) -> Calibration:
        """Set and store a ROI's threshold; see ``Calibrator.calibrate``, and ``CalibrationRequest`` for the fields."""
        return self.calibrator.calibrate(key, CalibrationRequest(**request), measured)

    def stored_scores(self, key: ModelKey, **settings: Any) -> RoiScores:
        """Return the scores of a ROI's stored images; see ``ScoreListing.get``, and ``CalibrationRequest``."""
        return self._score_listing.get(key, CalibrationRequest(**settings))

    def infer(
        self,
        key: ModelKey,
        image: bytes | NDArray[np.uint8],
        *,
        mm_per_px: float,
        shape: Shape | None = None,
        name: str = "image",
        overrides: Overrides = NO_OVERRIDES,
        for_calibration: bool = False,
        version: int | None = None,
    ) -> Inspection:
        """Inspect one image.

        An image that the memory was fitted on is compared with the vectors of *other* parts, so its score is what it
        would be on a part that nobody has seen.

        Args:
            image: The bytes of an image file, or pixels [H, W(, C)] uint8 or uint16 in BGR order.
            shape: What counts, in pixels of the image; what the ROI has learned with narrows it further.
            name: What an error sentence calls the image.
            overrides: Values in place of the ROI's own.
            for_calibration: Leave the ROI's own calibration out: a new one is to be made with the score.
            version: One that is kept, in place of the one in force.

        Raises:
            MemoryNotFound: If the ROI was never fitted.
            NotFound, ArtefactOutdated: If the version cannot be used.
            ArtefactCorrupt: If its memory or calibration is damaged.
            BadImage, TooLarge: If the image cannot be used.
            AspectRatioMismatch, MmPerPxMismatch, ExtractorMismatch: If it contradicts the fit.
            ShapeOutsideImage: If the shape covers nothing that was learned.
            QueueFull, WeightsUnavailable: If it cannot be done now.
        """
        watch = Stopwatch()
        model = self._models.get(key) if version is None else self._model_of(key, version)
        bank = model.fitted_bank(key)
        judged_by = (None, None) if for_calibration else (model.calibration, model.last_calibration)
        terms = scoring_terms(bank, *judged_by, overrides)
        with watch.lap("decode"):
            if isinstance(image, bytes):
                pixels = decode_image(image, max_pixels=self.defaults.max_pixels, name=name)
            else:
                pixels = to_bgr_uint8(image)
            digest = pixel_digest(pixels)
        extractor = self.extractor.get()
        check_extractor(bank, extractor)
        self._precision.check(key, bank, extractor)
        placement = replace(bank.placement, image_hw=(pixels.shape[0], pixels.shape[1]))
        check_aspect_ratio(bank.placement, placement.image_hw, name)
        sent = PhysicalSize(image_hw=placement.image_hw, mm_per_px=mm_per_px)
        scale = scale_of_image(PhysicalSize.of(bank), sent, name)
        on_grid = on_fitted_grid(pixels, extractor, bank.placement, name)
        mask = inspected_mask(shape, bank, placement.image_hw)
        terms = self._terms_within(key, model, terms, shape, mask)
        rows = self._extraction.inspect(extractor, on_grid, watch)
        check_width(bank, rows.shape[1])
        with watch.lap("search"):
            distances, scoring = _distances(bank, rows, digest, terms.k)
        facts = {
            **_facts_of(bank, extractor, placement, scale.mm_per_px),
            "scoring": scoring,
            "shape": None if shape is None else shape_fields(shape),
            "image_digest": digest,
        }
        with watch.lap("post"):
            full_scale = model.heatmap_full_scale if terms.calibration is None else 2 * terms.calibration.threshold
            found = judge(
                bank,
                distances,
                placement,
                mask,
                terms,
                heatmap_full_scale=full_scale,
                facts=facts,
                mm_per_px=scale.mm_per_px,
            )
            part, images = bank.part_of(digest), self.store.images(key)
            regions = with_nearest_good(found.regions, bank, rows, placement, images, part_id=part)
        if self.defaults.image_check != "off" and not for_calibration:
            with watch.lap("image_check"):
                checked = check_image(model, bank, pixels, mask)
            found = found.with_image_check(checked, rejects=self.defaults.image_check == "reject")
        of_scale = () if scale.warning is None else (scale.warning,)
        warnings = (*of_scale, *found.warnings)
        timings_ms = watch.timings_ms()
        return replace(found, regions=regions, warnings=warnings, timings_ms=timings_ms, image_bgr=pixels)

    def _model_of(self, key: ModelKey, version: int) -> LoadedModel:
        return LoadedModel(**vars(self.versions.stored(key, version).model))

    def _terms_within(
        self, key: ModelKey, model: LoadedModel, terms: ScoringTerms, shape: Shape | None, mask: NDArray[np.bool_]
    ) -> ScoringTerms:
        """Return terms with the threshold that holds in the area that is inspected."""
        thresholds = None if terms.calibration is None else model.shape_thresholds
        if thresholds is None:
            return terms
        bank = model.fitted_bank(key)
        found = thresholds.within(shape, mask, lambda: self.calibrator.stored_scores(key, bank))
        return replace(terms, calibration=found.calibration, warnings=found.warnings)


def _distances(bank: MemoryBank, rows: Rows, digest: str, k: int) -> tuple[NDArray[np.float32], str]:
    part = bank.part_of(digest)
    if part is None:
        return bank.cell_scores(rows, k=k), "new"
    left_out = bank.cell_scores_without(rows, part, k=k)
    if left_out is not None:
        return left_out, "leave_one_out"
    # The only part there is: nothing is left to compare it with. The score says nothing, and says so.
    return bank.cell_scores(rows, k=k), "own_image_only"


def _facts_of(bank: MemoryBank, extractor: FeatureExtractor, placement: Placement, mm_per_px: float) -> dict[str, Any]:
    return {
        "extractor": extractor.name,
        "extractor_id": extractor.extractor_id,
        "precision": extractor.precision,
        "coreset_rate": bank.options.coreset_rate,
        "mm_per_px": mm_per_px,
        "cell_mm": placement.cell_mm(mm_per_px),
        "learned_shape": bank.shape,
        "n_ok": len(bank.image_digests),
        "memory": "global" if bank.local is None else "local",
        "memory_checksum": bank.checksum,
    }
