"""Inspecting and calibrating with whole data sets. Every image gets its line, also one that cannot be inspected."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from backend.artifacts.model_key import ModelKey
from backend.artifacts.stored_image import Label, StoredImage
from backend.calib import Calibration, ScoreMode
from backend.errors import InspectionError, InvalidInput, QueueFull, StorageFailed, Unavailable
from backend.memory_bank.coreset import Progress
from backend.scoring.inspection import Inspection
from backend.services.calibrating import MeasuredScores
from backend.services.calibration import StoredUsed, dataset_shape
from backend.services.datasets import Datasets
from backend.services.inspection import InspectionService
from backend.services.learned_images import parts_of_images
from backend.services.rule_choice import choose_rule
from backend.services.stored_scores import learned_fields, own_shape, worst_by_part

_QUEUE_PATIENCE_S = 60.0
_QUEUE_POLL_S = 0.05


@dataclass(frozen=True, kw_only=True)
class DatasetItem:
    """One image of a data set and what came of its inspection: an inspection, or why there is none."""

    image: StoredImage
    mm_per_px: float
    inspection: Inspection | None = None
    error: str | None = None


def inspect_dataset(
    service: InspectionService,
    datasets: Datasets,
    key: ModelKey,
    *,
    labels: Sequence[Label],
    default_mm_per_px: float | None = None,
    progress: Progress | None = None,
    for_calibration: bool = False,
) -> Iterator[DatasetItem]:
    """Yield one item per stored image, whatever became of it. Images that were learned are scored leave-one-out.

    One at a time, because each inspection holds its map.

    Args:
        labels: Which classes; one that stands twice counts once.
        default_mm_per_px: For images whose metadata do not name a scale; else the ROI's own.
        progress: Called with (done, total).
        for_calibration: Leave the ROI's own calibration out: a new one is to be made with the scores.

    Raises:
        MemoryNotFound: If the ROI was never fitted.
        ArtefactCorrupt: If its memory or calibration is damaged.
        Unavailable: If nothing can be inspected now; that is no fault of an image.
    """
    model = service.describe(key)
    bank = model.fitted_bank(key)
    if not for_calibration:
        _ = model.calibration  # damaged, it is no image's fault: raised once, not for each
    listed = datasets.list(key)
    images = [image for label in dict.fromkeys(labels) for image in listed[label]]
    if for_calibration:
        images = [image for image in images if not image.is_excluded]
    for done, image in enumerate(images):
        item = DatasetItem(image=image, mm_per_px=image.mm_per_px or default_mm_per_px or bank.mm_per_px)
        try:
            infer = partial(
                service.infer,
                key,
                datasets.read(key, image),
                mm_per_px=item.mm_per_px,
                shape=own_shape(image),
                name=image.file_name,
                for_calibration=for_calibration,
            )
            # Without the pixels: the answer holds what was found in each image, not all the images.
            item = replace(item, inspection=replace(_patiently(infer), image_bgr=None))
        except InspectionError as error:
            if isinstance(error, Unavailable) and not isinstance(error, StorageFailed):
                raise
            item = replace(item, error=error.sentence)
        yield item
        if progress is not None:
            progress(done + 1, len(images))


def inspect_stored(service: InspectionService, datasets: Datasets, key: ModelKey, image: StoredImage) -> Inspection:
    """Inspect one stored image; one that was learned is scored leave-one-out.

    Raises:
        MemoryNotFound: If the ROI was never fitted.
        InspectionError: Whatever an inspection of the image raises.
    """
    bank = service.describe(key).fitted_bank(key)
    return service.infer(
        key,
        datasets.read(key, image),
        mm_per_px=image.mm_per_px or bank.mm_per_px,
        shape=own_shape(image),
        name=image.file_name,
    )


def calibrate_from_dataset(
    service: InspectionService,
    datasets: Datasets,
    key: ModelKey,
    *,
    default_mm_per_px: float | None = None,
    score_mode: ScoreMode | None = None,
    score_percentile: float | None = None,
    area_mm2_thr: float | None = None,
    ok_percentile: float | None = None,
    margin: float | None = None,
    threshold: float | None = None,
    dry_run: bool = False,
    reason: str | None = None,
    require_ng: bool = False,
    progress: Progress | None = None,
) -> tuple[Calibration, list[DatasetItem]]:
    """Calibrate a ROI with the scores of its data set, one per part; return it, and the images that took no part.

    The scores are measured as the ROI will be scored from then on; learned images are scored leave-one-out.

    Raises:
        MemoryNotFound: If the ROI was never fitted.
        InvalidInput: If there are too few ok images, or no ng image although ``require_ng``.
        Conflict: If the ROI was fitted meanwhile, or calibrated to be scored otherwise.
        Unavailable: If nothing can be inspected now.
    """
    stored = datasets.list(key)
    if require_ng and not stored["ng"]:
        raise InvalidInput("The data set has no ng images. Upload one, or send require_ng=false.")
    model = service.describe(key)
    bank = model.fitted_bank(key)
    choice = choose_rule(
        bank,
        model.last_calibration,
        brings_scores=False,  # they are measured below, by the rule that is chosen here
        score_mode=score_mode,
        score_percentile=score_percentile,
        area_mm2_thr=area_mm2_thr,
    )
    items = inspect_dataset(
        service,
        datasets,
        key,
        labels=("ok", "ng"),
        default_mm_per_px=default_mm_per_px,
        progress=progress,
        for_calibration=True,
    )
    scored: dict[Label, list[tuple[StoredImage, float]]] = {"ok": [], "ng": []}
    shapes = []
    failed: list[DatasetItem] = []
    memories = {bank.checksum}
    for item in items:
        if item.error is not None:
            failed.append(item)
        if item.inspection is not None:
            memories.add(item.inspection.params["memory_checksum"])
        if item.inspection is not None and item.inspection.params["scoring"] != "own_image_only":
            scored[item.image.label].append((item.image, item.inspection.score_under(choice.rule)))
            shapes.append(learned_fields(own_shape(item.image), item.image.image_hw, bank))
    parts = parts_of_images(bank, (image for image, _ in scored["ok"]), partial(datasets.pixels, key))
    ok_scores, ng_scores = worst_by_part(scored["ok"], parts), worst_by_part(scored["ng"], {})
    if len(ok_scores) < service.defaults.min_ok_samples:
        because = f" {len(failed)} images failed, the first with: {failed[0].error}" if failed else ""
        raise InvalidInput(
            f"The data set has {len(ok_scores)} good parts that can be scored; "
            f"{service.defaults.min_ok_samples} are needed. Upload more ok images and fit them.{because}",
            details={"ok_parts": len(ok_scores), "needed": service.defaults.min_ok_samples},
        )
    used = {label: tuple(image.digest for image, _ in of_label) for label, of_label in scored.items()}
    of = StoredUsed(ok_images=used["ok"], ng_images=used["ng"], shape=dataset_shape(shapes))
    calibration = service.calibrate(
        key,
        ok_scores=ok_scores,
        ng_scores=ng_scores or None,
        score_mode=score_mode,
        score_percentile=score_percentile,
        area_mm2_thr=area_mm2_thr,
        ok_percentile=ok_percentile,
        margin=margin,
        threshold=threshold,
        dry_run=dry_run,
        reason=reason,
        measured=MeasuredScores(by=choice, with_memories=memories, of=of),
    )
    return calibration, failed


def _patiently(infer: Callable[[], Inspection]) -> Inspection:
    """Inspect one image; where the queue is full, wait for a place: a long run must not end for a short rush."""
    waited_until = time.monotonic() + _QUEUE_PATIENCE_S
    while True:
        try:
            return infer()
        except QueueFull:
            if time.monotonic() > waited_until:
                raise
            time.sleep(_QUEUE_POLL_S)
