"""Whether the parts of a ROI always lie in the same place: how much of the images the mean image explains.

Such a ROI is aligned, and what a patch is compared with can be taken from its own neighbourhood on the other parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from backend.imaging.position_map import PLACE_CHANNELS

Aligned = Literal["auto", "yes", "no"]
"""What a fit is asked: to find out whether the ROI is aligned, or to take somebody's word for it."""

ALIGNED_FROM: Final = 0.33
"""The alignment from which a ROI is taken for aligned.

Measured: machined parts 0.96, castings 0.5, a plate 0.37; magnetic tiles 0.28, screws lying anyhow 0.17, commutators
0.03. Comparing by position helped the former and harmed the latter.
"""

MIN_PARTS_ALIGNED: Final = 8
"""Parts that the alignment is measured with at least, and that it takes to compare patches by position."""


def alignment(maps: NDArray[np.float16], mask_cells: NDArray[np.bool_]) -> float:
    """Return the share of the variance over the cells that the mean of the images explains, averaged over the channels.

    1 for images that are the same at each place; 0, on average, for images that have nothing to do with each other,
    however few they are; at least -1/(n - 1). A channel in which all images are flat says nothing and is left out.
    Images that are flat in all of them have 0: where every place looks the same, to know the place is of no use, and
    the least noise on such images gives 0 as well.

    Args:
        maps: [n, cells, channels] float16, the position map of one image of each part, n ≥ 2.
        mask_cells: [cells] bool, what counts.

    Raises:
        ValueError: For fewer than two images.
    """
    n = len(maps)
    if n < 2:
        raise ValueError("whether images agree takes two at least")
    values = maps[:, mask_cells].astype(np.float64)
    if not values.size:
        return 0.0  # the shape lies between the cells of this grid
    values -= values.mean(axis=1, keepdims=True)  # light differs between images, and says nothing of places
    total = np.square(values).sum(axis=(0, 1))
    residual = np.square(values - values.mean(axis=0)).sum(axis=(0, 1))
    varies = total > 0
    if not varies.any():
        return 0.0
    # The mean of n unrelated images still explains 1/n of them, because each is part of it: n/(n - 1) takes that out.
    return float(np.mean(1 - n / (n - 1) * residual[varies] / total[varies]))


def alignment_of_parts(
    maps: Mapping[str, NDArray[np.float16]], part_ids: Mapping[str, str], mask_cells: NDArray[np.bool_]
) -> float | None:
    """Return the alignment of a ROI, or None while it has too few parts.

    Each part counts once, by the first of its images in digest order: images of one part agree in any case.

    Args:
        maps: Position maps [cells, channels] float16 by image digest.
        part_ids: The part of each image; an image that is missing here is a part of its own.
        mask_cells: [cells] bool, what counts.
    """
    digest_by_part: dict[str, str] = {}
    for digest in sorted(maps):
        digest_by_part.setdefault(part_ids.get(digest, digest), digest)
    if len(digest_by_part) < MIN_PARTS_ALIGNED:
        return None
    of_parts = np.stack([maps[digest] for digest in digest_by_part.values()])
    return alignment(of_parts[:, :, : len(PLACE_CHANNELS)], mask_cells)
