"""Whether a call agrees with what the ROI was fitted with."""

from __future__ import annotations

from backend.artifacts.formats import LearnedFacts
from backend.errors import AspectRatioMismatch, ExtractorMismatch, MmPerPxMismatch
from backend.extractors.base import FeatureExtractor
from backend.imaging.placement import Placement
from backend.memory_bank.bank import MemoryBank

MM_PER_PX_TOLERANCE = 0.01
ASPECT_TOLERANCE = 0.02


def check_extractor(bank: MemoryBank | LearnedFacts, extractor: FeatureExtractor) -> None:
    """Raise ExtractorMismatch if the memory was made by another extractor, or by this one with other settings."""
    if bank.extractor_id != extractor.extractor_id:
        raise ExtractorMismatch(
            f"This ROI was fitted with the extractor {bank.extractor_id}, the service runs {extractor.extractor_id}. "
            "Their distances cannot be compared: restore the old setting, or fit again with mode=replace.",
            details={"fitted_with": bank.extractor_id, "running": extractor.extractor_id},
        )


def check_mm_per_px(bank: MemoryBank | LearnedFacts, mm_per_px: float) -> None:
    """Raise MmPerPxMismatch if the scale differs by more than 1 % from that of the first fit."""
    if abs(mm_per_px / bank.mm_per_px - 1) > MM_PER_PX_TOLERANCE + 1e-9:
        raise MmPerPxMismatch(
            f"mm_per_px is {mm_per_px:g}, but this ROI was fitted with {bank.mm_per_px:g}. "
            "Send the fitted value, or fit again with mode=replace.",
            details={"field": "mm_per_px", "fitted_with": bank.mm_per_px, "sent": mm_per_px},
        )


def check_same_scale(mm_per_px: float, of_image: float | None, name: str) -> None:
    """Raise MmPerPxMismatch if a stored image was uploaded with another scale than it is now used with."""
    if of_image is not None and abs(of_image / mm_per_px - 1) > MM_PER_PX_TOLERANCE + 1e-9:
        raise MmPerPxMismatch(
            f"mm_per_px is {mm_per_px:g}, but the stored image {name!r} has {of_image:g}. "
            "Send its value, or delete the image and upload it again.",
            details={"field": "mm_per_px", "image": name, "stored_with": of_image, "sent": mm_per_px},
        )


def check_aspect_ratio(fitted: Placement, placement: Placement, name: str = "image") -> None:
    """Raise AspectRatioMismatch if an image does not share the aspect ratio and grid of those that were learned."""
    (h0, w0), (h1, w1) = fitted.image_hw, placement.image_hw
    if placement.grid_hw != fitted.grid_hw or abs((w1 / h1) / (w0 / h0) - 1) > ASPECT_TOLERANCE:
        raise AspectRatioMismatch(
            f"The image {name!r} is {w1}×{h1} px; the images of this ROI are {w0}×{h0} px. "
            "All images of a ROI must have one aspect ratio: cut it out the same way, or use another roi_id.",
            details={"fitted_width": w0, "fitted_height": h0, "width": w1, "height": h1},
        )
