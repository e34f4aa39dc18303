"""Whether a call agrees with what the ROI was fitted with."""

from __future__ import annotations

import math
import threading
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backend.artifacts.formats import LearnedFacts
from backend.artifacts.model_key import ModelKey
from backend.errors import (
    ArtefactCorrupt,
    AspectRatioMismatch,
    Conflict,
    ExtractorMismatch,
    InspectionError,
    MmPerPxMismatch,
)
from backend.extractors.base import FeatureExtractor
from backend.extractors.extraction import Extraction
from backend.imaging.image_codec import decode_image
from backend.imaging.placement import Placement, resized
from backend.memory_bank.bank import MemoryBank
from backend.scoring.leave_one_out import learned_image_score, learned_mask, leave_one_out_scores
from backend.storage import ArtefactStore

SCALE_TOLERANCE = 0.02
ASPECT_TOLERANCE = 0.02
PRECISION_TOLERANCE = 0.01
"""Largest change of a score that another precision may make, as a share of the threshold."""

_IMAGES_COMPARED = 3


def check_extractor(bank: MemoryBank | LearnedFacts, extractor: FeatureExtractor) -> None:
    """Raise ExtractorMismatch if the memory was made by another extractor, or by this one with other settings."""
    if bank.extractor_id != extractor.extractor_id:
        raise ExtractorMismatch(
            f"This ROI was fitted with the extractor {bank.extractor_id}, the service runs {extractor.extractor_id}. "
            "Their distances cannot be compared: make the ROI anew from its stored images with POST /refit or "
            "`roi-inspector refit`, restore the old setting, or fit again with mode=replace.",
            details={"fitted_with": bank.extractor_id, "running": extractor.extractor_id},
        )


def check_mm_per_px(bank: MemoryBank | LearnedFacts, mm_per_px: float) -> None:
    """Raise MmPerPxMismatch if a scale without an image differs by more than 2 % from that of the first fit."""
    if not _agree(mm_per_px, bank.mm_per_px):
        raise _scale_mismatch(
            f"mm_per_px is {mm_per_px:g}, but this ROI was fitted with {bank.mm_per_px:g}. ", bank.mm_per_px, mm_per_px
        )


@dataclass(frozen=True, kw_only=True)
class PhysicalSize:
    """How large a part an image shows.

    Attributes:
        image_hw: Height and width, px.
        mm_per_px: Millimetres per pixel.
    """

    image_hw: tuple[int, int]
    mm_per_px: float

    @classmethod
    def of(cls, known: MemoryBank | LearnedFacts) -> PhysicalSize:
        """Return the size that was fixed at a ROI's first fit."""
        return cls(image_hw=known.placement.image_hw, mm_per_px=known.mm_per_px)

    def __str__(self) -> str:
        (height, width), mm = self.image_hw, self.mm_per_px
        return f"{width}×{height} px at mm_per_px {mm:g} ({width * mm:.4g}×{height * mm:.4g} mm)"


@dataclass(frozen=True, kw_only=True)
class ImageScale:
    """The scale that areas in an image are counted in.

    Attributes:
        mm_per_px: Millimetres per pixel of the image.
        warning: Where it is not the one that was sent, why.
    """

    mm_per_px: float
    warning: str | None = None


def scale_of_image(fitted: PhysicalSize, sent: PhysicalSize, name: str = "image") -> ImageScale:
    """Return the scale of an image of a ROI, whose physical size and mm_per_px are fixed at the first fit.

    The same size at another mm_per_px is binning, or another camera. Another size at the same mm_per_px is taken for
    the same area of the part, as all images of a ROI are, and so for another scale than was sent.

    Args:
        fitted: The ROI's.
        sent: The image's, with the mm_per_px that came with it.
        name: What an error calls the image.

    Raises:
        MmPerPxMismatch: If both differ by more than 2 %.
    """
    (height, width), (h0, w0) = sent.image_hw, fitted.image_hw
    is_scale = _agree(sent.mm_per_px, fitted.mm_per_px)
    is_size = all(_agree(px * sent.mm_per_px, px0 * fitted.mm_per_px) for px, px0 in ((height, h0), (width, w0)))
    if is_size:
        return ImageScale(mm_per_px=fitted.mm_per_px if is_scale else sent.mm_per_px)
    shown = fitted.mm_per_px * math.sqrt(h0 * w0 / (height * width))
    if not is_scale:
        raise _scale_mismatch(
            f"The image {name!r} is {sent}, but this ROI was fitted with mm_per_px {fitted.mm_per_px:g}. Its images "
            f"are {fitted}: neither the scale nor the physical size agrees. ",
            fitted.mm_per_px,
            sent.mm_per_px,
        )
    return ImageScale(
        mm_per_px=shown,
        warning=f"An image of {sent} is of another size than those that the ROI was fitted with, {fitted}. It was "
        f"resized, as one of the same area of the part at {shown:.4g} mm per pixel. If it is one, send that mm_per_px; "
        "if not, cut it out as at the fit.",
    )


def _agree(value: float, fitted: float) -> bool:
    return abs(value / fitted - 1) <= SCALE_TOLERANCE + 1e-9


def _scale_mismatch(sentence: str, fitted: float, sent: float) -> MmPerPxMismatch:
    return MmPerPxMismatch(
        f"{sentence}Send the fitted value, the scale that belongs to the image's own pixels, or fit again with "
        "mode=replace.",
        details={"field": "mm_per_px", "fitted_with": fitted, "sent": sent},
    )


def check_aspect_ratio(fitted: Placement, image_hw: tuple[int, int], name: str = "image") -> None:
    """Raise AspectRatioMismatch if an image's aspect ratio differs by more than 2 % from that of those learned."""
    (h0, w0), (h1, w1) = fitted.image_hw, image_hw
    if abs((w1 / h1) / (w0 / h0) - 1) > ASPECT_TOLERANCE:
        raise _aspect_ratio_mismatch(fitted, image_hw, name)


def on_fitted_grid(
    image_bgr: NDArray[np.uint8], extractor: FeatureExtractor, fitted: Placement, name: str = "image"
) -> NDArray[np.uint8]:
    """Return an image of the fitted aspect ratio at a size that the extractor brings to the fitted grid.

    Cuts that differ by a pixel may round to another number of cells. Such an image is resized as a whole, to the
    nearest width that does not; any other is returned as it is.

    Args:
        image_bgr: [H, W, 3] uint8.
        extractor: Says which grid a size has.
        fitted: Of the ROI.
        name: What an error calls the image.

    Raises:
        AspectRatioMismatch: If the image is so small that no whole number of pixels is near enough.
    """
    height, width = image_bgr.shape[:2]
    for change in range(math.ceil(width * ASPECT_TOLERANCE) + 1):
        for wanted in (width - change, width + change):
            if extractor.placement((height, wanted)).grid_hw == fitted.grid_hw:
                return image_bgr if change == 0 else resized(image_bgr, (height, wanted))
    raise _aspect_ratio_mismatch(fitted, (height, width), name)


def _aspect_ratio_mismatch(fitted: Placement, image_hw: tuple[int, int], name: str) -> AspectRatioMismatch:
    (h0, w0), (h1, w1) = fitted.image_hw, image_hw
    return AspectRatioMismatch(
        f"The image {name!r} is {w1}×{h1} px; the images of this ROI are {w0}×{h0} px. "
        "All images of a ROI must have one aspect ratio: cut it out the same way, or use another roi_id.",
        details={"fitted_width": w0, "fitted_height": h0, "width": w1, "height": h1},
    )


def check_memory(bank: MemoryBank, measured_with: Collection[str]) -> None:
    """Raise Conflict if scores were measured with another memory, by the checksums of those that they are of."""
    if any(checksum != bank.checksum for checksum in measured_with):
        raise Conflict(
            "The ROI was fitted while its images were inspected: these scores do not belong to its memory of now. "
            "Send the call again."
        )


def check_width(bank: MemoryBank, n_columns: int) -> None:
    """Raise ArtefactCorrupt if an extractor's rows are not as wide as those that a memory of its name was made of."""
    expected = bank.vectors.shape[1] if bank.whitening is None else len(bank.whitening.mean)
    if n_columns != expected:
        raise ArtefactCorrupt(
            f"The stored memory of this ROI was not made by the extractor that it names: its rows have {expected} "
            f"columns in place of {n_columns}. Fit it again with /fit_ok and mode=replace.",
            details={"artefact": "memory.npz"},
        )


class PrecisionCheck:
    """Whether a memory may be read in another precision of the same network than it was made in.

    Rounding moves embeddings a little, by how much depends on the weights. So it is measured, once per memory and
    precision, on images that the memory has learned: their leave-one-image-out scores again, from rows of the running
    precision.
    """

    def __init__(self, store: ArtefactStore, extraction: Extraction, *, max_pixels: int) -> None:
        self._store = store
        self._extraction = extraction
        self._max_pixels = max_pixels
        self._changes: dict[tuple[str, str], float | None] = {}
        self._lock = threading.Lock()

    def check(self, key: ModelKey, bank: MemoryBank, extractor: FeatureExtractor) -> None:
        """Let pass a memory of the running precision, or one whose scores that precision moves by less than 1 %.

        Raises:
            ExtractorMismatch: If it moves them further, or no learned image is left to tell.
        """
        if bank.precision == extractor.precision:
            return
        with self._lock:
            case = (bank.checksum, extractor.precision)
            if case not in self._changes:
                self._changes[case] = self._measured(key, bank, extractor)
            change = self._changes[case]
        if change is None or change >= PRECISION_TOLERANCE:
            moved = "cannot be measured" if change is None else f"is {100 * change:.1f} % of the threshold"
            raise ExtractorMismatch(
                f"This ROI was fitted in {bank.precision}, the service computes in {extractor.precision}, and what "
                f"that changes in its scores {moved}. "
                f"Set BDI_PRECISION={bank.precision}, or make the ROI anew with POST /refit and force=true.",
                details={"fitted_with": bank.precision, "running": extractor.precision, "change": change},
            )

    def _measured(self, key: ModelKey, bank: MemoryBank, extractor: FeatureExtractor) -> float | None:
        """Return the largest change of a score as a share of the threshold, or None where nothing can be measured."""
        rule = bank.options.rule
        known = leave_one_out_scores(bank, rule)
        threshold = known.suggested_threshold()
        if not threshold:
            return None
        images = self._store.images(key)
        mask = learned_mask(bank, bank.placement.image_hw)
        changes: list[float] = []
        for digest, score in sorted(known.by_image.items()):
            if len(changes) == _IMAGES_COMPARED:
                break
            try:
                stored = images.get(digest, "ok")
                if stored is None:
                    continue
                image = decode_image(images.read(stored), max_pixels=self._max_pixels, name=stored.file_name)
            except InspectionError:
                continue  # a damaged image tells nothing; the others may
            image = on_fitted_grid(image, extractor, bank.placement, stored.file_name)
            rows = self._extraction.learn(extractor, [image])[0]
            distances = bank.cell_scores_without(rows, bank.part_of(digest) or digest)
            if distances is not None:
                distances[~bank.mask_cells] = float("nan")
                changes.append(abs(learned_image_score(bank, distances, mask, rule) - score) / threshold)
        return max(changes, default=None)
