"""Whether images belong to a ROI: one that is inspected, and those that a fit has learned."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from backend.artifacts.image_store import ImageStore
from backend.artifacts.stored_image import FILE_NAME_DIGITS
from backend.imaging.appearance import INPUT_PX, appearance_map
from backend.imaging.position_map import appearance_of, position_placement
from backend.memory_bank.bank import MemoryBank
from backend.memory_bank.image_ranges import learn_ranges
from backend.scoring.image_check import ImageCheck, image_check
from backend.scoring.leave_one_out import learned_mask
from backend.services.model_cache import LoadedModel

_MIN_CELLS: Final = 16
"""Below this an area says too little of an image; what the ROI has learned is compared instead."""

_INSIDE: Final = 0.99

_SAME_SIZE: Final = 1.1
"""Ratio of two images' edges up to which they resolve the same detail."""

_RESOLVED: Final = 1.5
"""Detail of so many pixels of the coarser of two images looks alike in both."""

_NAMED: Final = 5


def check_image(
    model: LoadedModel, bank: MemoryBank, image_bgr: NDArray[np.uint8], mask: NDArray[np.bool_]
) -> ImageCheck:
    """Return whether an image can be one of a ROI.

    Args:
        model: The model in use; it keeps the ranges of areas that it was asked for.
        bank: Its memory.
        image_bgr: [H, W, 3] uint8.
        mask: [H, W] bool, the pixels that count.
    """
    image_hw = (image_bgr.shape[0], image_bgr.shape[1])
    cells = _cells(mask)
    if np.count_nonzero(cells) < _MIN_CELLS:
        cells = _cells(learned_mask(bank, image_hw))
    ranges = model.image_ranges(bank, cells)
    return image_check(
        ranges.compare(appearance_map(image_bgr), finest_px=_finest_px(bank.placement.image_hw, image_hw))
    )


def strange_images(bank: MemoryBank, images: ImageStore) -> Iterable[str]:
    """Yield a sentence about the learned images that are unlike the others, if there are any, by their stored names."""
    distinct = [bank.distinct_parts[digest] for digest in bank.image_digests]
    ranges = learn_ranges(
        appearance_of(bank.position_maps), distinct, _cells(learned_mask(bank, bank.placement.image_hw))
    )
    found = [(_name_of(bank.image_digests[index], images), image_check(each)) for index, each in ranges.strange.items()]
    if not found:
        return
    named = "; ".join(f"{name!r}: {check.sentence}" for name, check in found[:_NAMED])
    more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    yield (
        f"{len(found)} of the {len(bank.image_digests)} good images {'is' if len(found) == 1 else 'are'} unlike the "
        f"others ({named}{more}). They are learned, but images like them will be rejected. If they are good parts, fit "
        "more of their kind; if not, delete them and fit again."
    )


def _name_of(digest: str, images: ImageStore) -> str:
    stored = images.get(digest, "ok")
    return digest[:FILE_NAME_DIGITS] if stored is None else stored.file_name


def _cells(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the cells of position maps that lie in an area [H, W] bool: [cells] bool."""
    # A cell on the edge of the area shows what lies beside it, too, which was said not to count.
    return np.asarray(position_placement((mask.shape[0], mask.shape[1])).cell_coverage(mask).reshape(-1) > _INSIDE)


def _finest_px(learned_hw: tuple[int, int], image_hw: tuple[int, int]) -> float:
    """Return the finest detail that images of two sizes show alike, px of an image brought to ``INPUT_PX``."""
    learned, own = min(learned_hw), min(image_hw)
    if max(learned, own) <= _SAME_SIZE * min(learned, own):
        return 0.0
    return _RESOLVED * INPUT_PX / min(learned, own)
