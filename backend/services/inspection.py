"""The use cases: fit, calibrate, infer, describe. No HTTP, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from backend.artifacts.heatmaps import save_heatmap
from backend.artifacts.model_key import ModelKey
from backend.calib import OK_PERCENTILE, Calibration, ScoreMode
from backend.errors import ArtefactCorrupt, MemoryNotFound, ShapeOutsideImage
from backend.extractors.device_queue import DeviceQueue
from backend.extractors.extraction import Extraction, Rows
from backend.extractors.loader import ExtractorLoader, ExtractorState
from backend.imaging.image_codec import decode_image, pixel_digest, to_bgr_uint8
from backend.memory_bank.bank import MemoryBank
from backend.memory_bank.coreset import Progress
from backend.roi_mask import Shape, shape_fields, shape_mask
from backend.scoring.anomaly_map import anomaly_map
from backend.scoring.image_score import image_scores
from backend.scoring.inspection import Decision, Inspection
from backend.scoring.leave_one_out import ScoreRule, learned_mask
from backend.scoring.regions import Region, find_regions
from backend.services.agreement import PrecisionCheck
from backend.services.calibrating import CalibrationRequest, calibrated, rule_of
from backend.services.consistency import check_aspect_ratio, check_extractor, check_mm_per_px
from backend.services.fit_report import FitReport
from backend.services.fit_request import FitRequest, Mode, Upload
from backend.services.fitting import Fitter
from backend.services.model_cache import LoadedModel, ModelCache
from backend.storage import ArtefactStore, StoredModel
from backend.utils import Stopwatch


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What holds where a request or a ROI's calibration says nothing; units as in ``Settings``."""

    coreset_rate: float
    seed: int
    k: int
    rule: ScoreRule
    area_mm2_thr: float
    max_pixels: int
    min_ok_samples: int


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
        self._store = store
        self._extractor = extractor
        self._device = device
        self._models = ModelCache(store, cache_max_entries, defaults.rule)
        self._extraction = Extraction(device, batch_wait_ms=batch_wait_ms)
        self._precision = PrecisionCheck(store, self._extraction, max_pixels=defaults.max_pixels)
        self._fitter = Fitter(
            store=store, extractor=extractor, extraction=self._extraction, max_pixels=defaults.max_pixels
        )

    @property
    def store(self) -> ArtefactStore:
        """Where the artefacts lie."""
        return self._store

    @property
    def extractor_state(self) -> ExtractorState:
        """Whether there is an extractor; never waits."""
        return self._extractor.state

    @property
    def extractor_name(self) -> str:
        """Name of the extractor; waits while it is being loaded."""
        return self._extractor.get().name

    def start(self) -> None:
        """Begin to get the extractor ready."""
        self._extractor.start()

    def close(self) -> None:
        """Finish what is on the device and take nothing new."""
        self._device.close()

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
        progress: Progress | None = None,
    ) -> FitReport:
        """Learn good images; see ``Fitter.fit``."""
        request = FitRequest(
            uploads=uploads,
            mm_per_px=mm_per_px,
            shape=shape,
            mode=mode,
            use_dataset=use_dataset,
            coreset_rate=self.defaults.coreset_rate if coreset_rate is None else coreset_rate,
            k=self.defaults.k,
            seed=self.defaults.seed,
            rule=self.defaults.rule,
            area_mm2_thr=self.defaults.area_mm2_thr,
        )
        return self._fitter.fit(key, request, progress=progress)

    def calibrate(
        self,
        key: ModelKey,
        *,
        mm_per_px: float | None = None,
        ok_scores: Sequence[float] | None = None,
        ng_scores: Sequence[float] | None = None,
        score_mode: ScoreMode | None = None,
        score_percentile: float | None = None,
        area_mm2_thr: float | None = None,
        ok_percentile: float = OK_PERCENTILE,
        margin: float = 1.0,
        scores_from: Literal["request", "dataset"] = "request",
        scores_measured_with: ScoreRule | None = None,
    ) -> Calibration:
        """Set and store a ROI's threshold. A setting left out keeps the value of the ROI's last calibration.

        ``scores_measured_with`` says how the scores in the call were measured, when not as the ROI was scored so far.

        Raises:
            MemoryNotFound: If the ROI was never fitted.
            MmPerPxMismatch: If ``mm_per_px`` is not that of the fit.
            InvalidInput: As ``calibrated``.
        """
        _fitted(key, self._models.get(key))  # before the lock, which makes the ROI's folder
        with self._store.lock(key):
            bank = _fitted(key, self._store.load(key))
            if mm_per_px is not None:
                check_mm_per_px(bank, mm_per_px)
            last, warnings = self._last_calibration(key)
            kept_area = self.defaults.area_mm2_thr if last is None else last.area_mm2_thr
            request = CalibrationRequest(
                ok_scores=ok_scores,
                ng_scores=ng_scores,
                rule=self.rule_after(key, score_mode=score_mode, score_percentile=score_percentile),
                scores_from=scores_from,
                measured_with=scores_measured_with or self._rule(last),
                area_mm2_thr=kept_area if area_mm2_thr is None else area_mm2_thr,
                ok_percentile=ok_percentile,
                margin=margin,
                min_parts=self.defaults.min_ok_samples,
            )
            calibration = calibrated(bank, request)
            calibration = replace(calibration, warnings=(*calibration.warnings, *warnings))
            self._store.save_calibration(key, calibration)
        return calibration

    def infer(
        self,
        key: ModelKey,
        image: bytes | NDArray[np.uint8],
        *,
        mm_per_px: float,
        shape: Shape | None = None,
        name: str = "image",
        k: int | None = None,
        score_percentile: float | None = None,
        blur_sigma: float | None = None,
        area_mm2_thr: float | None = None,
        for_calibration: bool = False,
    ) -> Inspection:
        """Inspect one image.

        An image that the memory was fitted on is compared with the vectors of *other* parts, so its score is what it
        would be on a part that nobody has seen.

        Args:
            key: The model.
            image: The bytes of an image file, or pixels [H, W(, C)] uint8 or uint16 in BGR order.
            mm_per_px: Millimetres per pixel.
            shape: What counts, in pixels of the image; what the ROI has learned with narrows it further.
            name: What an error sentence calls the image.
            k: Overrides the memory's number of neighbours.
            score_percentile: For a ROI without a calibration.
            blur_sigma: Overrides the setting, px.
            area_mm2_thr: For a ROI without a calibration, mm².
            for_calibration: Leave the ROI's own calibration out: a new one is to be made with the score.

        Raises:
            MemoryNotFound: If the ROI was never fitted.
            ArtefactCorrupt: If its memory or calibration is damaged.
            BadImage, TooLarge: If the image cannot be used.
            AspectRatioMismatch, MmPerPxMismatch, ExtractorMismatch: If it contradicts the fit.
            ShapeOutsideImage: If the shape covers nothing that was learned.
            QueueFull, WeightsUnavailable: If it cannot be done now.
        """
        watch = Stopwatch()
        model = self._models.get(key)
        bank = _fitted(key, model)
        calibration, stale = (None, False) if for_calibration else (model.calibration, model.stale)
        check_mm_per_px(bank, mm_per_px)
        with watch.lap("decode"):
            if isinstance(image, bytes):
                pixels = decode_image(image, max_pixels=self.defaults.max_pixels, name=name)
            else:
                pixels = to_bgr_uint8(image)
            digest = pixel_digest(pixels)
        extractor = self._extractor.get()
        check_extractor(bank, extractor)
        self._precision.check(key, bank, extractor, self.defaults.rule)
        image_hw = (pixels.shape[0], pixels.shape[1])
        placement = extractor.placement(image_hw)
        check_aspect_ratio(bank.placement, placement, name)
        mask = _mask(shape, bank, image_hw)
        embeddings = self._extraction.inspect(extractor, pixels, watch)
        with watch.lap("search"):
            distances, scoring = _distances(bank, embeddings, digest, k)
        with watch.lap("post"):
            # A calibration that is set aside still says what its successor's scores are to be.
            last = next(iter(self._store.calibrations(key)), None) if stale else calibration
            rule = self._rule(last)
            percentile = score_percentile if calibration is None and score_percentile else rule.percentile
            blur_sigma = rule.blur_sigma if blur_sigma is None else blur_sigma
            min_area_mm2 = self.defaults.area_mm2_thr if area_mm2_thr is None else area_mm2_thr
            if calibration is not None:
                min_area_mm2 = calibration.area_mm2_thr
            learned = np.where(bank.mask_cells, distances, np.nan).astype(np.float32)
            image_map = anomaly_map(learned, placement, mask, blur_sigma=blur_sigma)
            scores = image_scores(image_map, mask, percentile=percentile)
            score = scores[rule.mode]
            threshold: float | None = None
            decision: Decision | None = None
            regions: tuple[Region, ...] = ()
            if calibration is not None:
                threshold = calibration.threshold
                decision = "ng" if score > threshold else "ok"
                regions = find_regions(
                    image_map, mask, threshold=threshold, area_mm2_thr=min_area_mm2, mm_per_px=bank.mm_per_px
                )
        params: dict[str, Any] = {
            "extractor": extractor.name,
            "extractor_id": extractor.extractor_id,
            "precision": extractor.precision,
            "coreset_rate": bank.coreset_rate,
            "k": k or bank.k,
            "p_score": percentile,
            "blur_sigma": blur_sigma,
            "mm_per_px": bank.mm_per_px,
            "score_percentile": percentile,
            "score_mode": rule.mode,
            "scores": scores,
            "scoring": scoring,
            "area_mm2_thr": min_area_mm2,
            "heatmap_scale": model.heatmap_full_scale,
            "cell_mm": placement.cell_mm(bank.mm_per_px),
            "calibration_stale": stale,
            "shape": None if shape is None else shape_fields(shape),
            "learned_shape": bank.shape,
            "n_ok": len(bank.image_digests),
            "memory_checksum": bank.checksum,
            "image_digest": digest,
        }
        return Inspection(
            score=score,
            threshold=threshold,
            decision=decision,
            map=image_map,
            mask=mask,
            regions=regions,
            grid_hw=placement.grid_hw,
            heatmap_full_scale=model.heatmap_full_scale,
            params=params,
            timings_ms=watch.timings_ms(),
        )

    def fitted_bank(self, key: ModelKey) -> MemoryBank:
        """Return the memory of a ROI.

        Raises:
            MemoryNotFound: If the ROI was never fitted.
        """
        return _fitted(key, self._models.get(key))

    def rule_after(
        self, key: ModelKey, *, score_mode: ScoreMode | None = None, score_percentile: float | None = None
    ) -> ScoreRule:
        """Return how a ROI's maps become scores after a calibration that asks for these; None keeps what was."""
        last = self._rule(self._last_calibration(key)[0])
        return ScoreRule(
            mode=score_mode or last.mode,
            percentile=score_percentile or last.percentile,
            blur_sigma=last.blur_sigma,
        )

    def keep_heatmap(self, key: ModelKey, inspection: Inspection, png: bytes) -> str:
        """Store a heat map as a file; return its path below the models folder. The newest few hundred are kept."""
        return save_heatmap(self._store, key, str(inspection.params["image_digest"]), png)

    def describe(self, key: ModelKey) -> LoadedModel:
        """Return what is stored of a model.

        Raises:
            ArtefactCorrupt: If a stored file is damaged.
        """
        return self._models.get(key)

    def _last_calibration(self, key: ModelKey) -> tuple[Calibration | None, list[str]]:
        """Return the newest calibration, of whatever memory, and what to warn of where it cannot be read any more."""
        try:
            return next(iter(self._store.calibrations(key)), None), []
        except ArtefactCorrupt:
            return None, [
                "The calibration before this one was damaged: settings that this call does not name (score_mode, "
                "score_percentile, area_mm2_thr) are the service's defaults now."
            ]

    def _rule(self, calibration: Calibration | None) -> ScoreRule:
        blur_sigma = self.defaults.rule.blur_sigma
        return self.defaults.rule if calibration is None else rule_of(calibration, blur_sigma)


def _fitted(key: ModelKey, model: StoredModel | LoadedModel) -> MemoryBank:
    if model.bank is None:
        raise MemoryNotFound(
            f"memory not found for {key}: run /fit_ok first with good images of this ROI.",
            details={"role_id": key.role_id, "roi_id": key.roi_id, "model_key": key.model_key},
        )
    return model.bank


def _mask(shape: Shape | None, bank: MemoryBank, image_hw: tuple[int, int]) -> NDArray[np.bool_]:
    mask = shape_mask(shape, image_hw)
    if bank.shape is None:
        return mask
    mask &= learned_mask(bank, image_hw)
    if not mask.any():
        raise ShapeOutsideImage(
            "The shape covers nothing of the area that this ROI was fitted with. Send a shape inside it, or fit again.",
            details={"field": "shape", "learned_shape": dict(bank.shape)},
        )
    return mask


def _distances(bank: MemoryBank, embeddings: Rows, digest: str, k: int | None) -> tuple[NDArray[np.float32], str]:
    part = bank.part_of(digest)
    if part is None:
        return bank.distances(embeddings, k=k), "new"
    left_out = bank.distances_without(embeddings, part, k=k)
    if left_out is not None:
        return left_out, "leave_one_out"
    # The only part there is: nothing is left to compare it with. The score says nothing, and says so.
    return bank.distances(embeddings, k=k), "own_image_only"
