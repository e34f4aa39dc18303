"""Which good images show one and the same part: frames of a burst, other encodings, a cut that moved by a pixel.

A threshold promises what different good parts can prove. Twenty-five frames of one part are one part, whatever the
camera's noise makes of their pixels, and nothing of how parts differ.

Two images are compared by their position maps: the tone of one is brought as near to that of the other as a change of
light, a shift and a turn can bring it (one step of Lucas & Kanade 1981, with the mean gradient of both, so that the
order of the two does not matter), and what is left is their difference, in grey levels. Measured at about 384 px:

| pair | difference |
|---|---|
| frames with noise of 3 / 6 grey levels | 0.2–0.3 / 0.4–0.6 |
| JPEG of quality 50 to 96 | 0.1–0.4 |
| cut moved by up to a pixel, exposure ±5 %, JPEG | 0.2–1.1 |
| one casting that was placed twice: three pairs of a public set, by their marks | 1.2–1.9 |
| different parts: castings / rendered flanges / commutators | from 4.6 / 4.1 / 8.1 |

A small difference alone is no proof. Plain plates differ by little because they show little, and parts without any
surface of their own differ by the camera's noise and by how they lie. So a pair counts as one part only if the
difference is small beside the fine structure that most places of the images show, which they therefore share; or if it
is no more than camera noise, and a movement explains none of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from backend.imaging.placement import Placement

MIN_PARTS_LEFT_OUT_TOGETHER: Final = 5
"""Different parts from which near-identical images are left out together as the images of one part are. With fewer,
too little would be left to compare them with."""

_LARGEST: Final = 1.5
"""Difference, grey levels, that images of one part have at most."""

_OF_FINE_STRUCTURE: Final = 1 / 3
"""The same as a share of the fine structure of the less structured of the two images."""

_NOISE: Final = 3.0
"""Standard deviation of the camera noise, grey levels per pixel, that images which agree otherwise may differ by."""

_EXPLAINED_BY_MOVEMENT: Final = 1.2
"""Ratio of the difference before and after the movement from which on it is no noise."""

_UNRELATED: Final = 0.5
"""Difference as a share of the contrast of the flatter image from which on two images have nothing in common."""

_QUANTILE: Final = 30.0
"""Percentile over the cells that the fine structure is taken at: outlines, which all parts share, lie above it."""
_NORMAL_QUANTILE: Final = 0.385
"""That percentile of the absolute value of a standard normal variable."""

_MIN_CELLS: Final = 64
"""Cells from which a shape is looked at alone; of a smaller one too little is left once movement is taken out."""

_FAR: Final = 4.0
"""Where a difference ends to count, in units of what one part may have: two bad pairs do not outweigh many good."""
_FORBIDDEN: Final = 1e6
_ROWS_AT_ONCE: Final = 128


def near_identical_groups(
    maps: Mapping[str, NDArray[np.float16]],
    part_ids: Mapping[str, str],
    mask_cells: NDArray[np.bool_],
    placement: Placement,
) -> tuple[tuple[str, ...], ...]:
    """Return the groups of images that show one part, by what can be seen: the digests of each, ascending.

    The same images give the same groups in whatever order they came. Groups are those of average linkage, so that a
    chain of accidental pairs does not join what is different on the whole.

    Args:
        maps: Position maps [cells, 4] float16 by image digest.
        part_ids: The part of each image as the client named it; the image's own digest where nobody did. Two images of
            differently named parts are never in one group.
        mask_cells: [cells] bool, what counts.
        placement: Of the position maps.
    """
    digests = sorted(maps)
    if len(digests) < 2 or not mask_cells.any():
        return ()
    values = np.stack([maps[digest] for digest in digests]).astype(np.float64)
    distances = _relative_differences(values, mask_cells, placement)
    named = np.array([part_ids[digest] if part_ids[digest] != digest else "" for digest in digests], dtype=object)
    both_named = (named[:, None] != "") & (named[None, :] != "")
    distances[both_named & (named[:, None] != named[None, :])] = _FORBIDDEN
    np.fill_diagonal(distances, 0.0)
    if not (distances[np.triu_indices(len(digests), 1)] <= 1).any():
        return ()
    labels = fcluster(linkage(squareform(distances, checks=False), method="average"), 1.0, criterion="distance")
    groups = [tuple(digests[i] for i in np.flatnonzero(labels == label)) for label in np.unique(labels)]
    return tuple(sorted(group for group in groups if len(group) > 1))


def distinct_parts(part_ids: Mapping[str, str], groups: Sequence[Sequence[str]]) -> dict[str, str]:
    """Return the part that each image shows, by the client's word and by what can be seen.

    Args:
        part_ids: As of ``near_identical_groups``.
        groups: What that returned. A group takes the part that one of its images was named, or its first digest.
    """
    found = dict(part_ids)
    for group in groups:
        names = sorted({part_ids[digest] for digest in group if part_ids[digest] != digest})
        for digest in group:
            if part_ids[digest] == digest:
                found[digest] = names[0] if names else group[0]
    return found


def _relative_differences(
    values: NDArray[np.float64], mask_cells: NDArray[np.bool_], placement: Placement
) -> NDArray[np.float64]:
    """Return the differences [n, n] of images in units of what images of one part may have, at most ``_FAR``."""
    height, width = placement.image_hw
    pixels_per_cell = np.sqrt(height * width / len(mask_cells))
    cell_px = np.sqrt(placement.input_hw[0] * placement.input_hw[1] / len(mask_cells))
    everywhere = np.ones_like(mask_cells)
    is_large = int(mask_cells.sum()) >= min(_MIN_CELLS, len(mask_cells))
    cells = mask_cells if is_large else everywhere
    still, moved, contrast = _differences(values, cells, placement.grid_hw)
    fine = _fine_structure(values[:, :, 0], cells, placement.grid_hw)
    noise = _NOISE * np.sqrt(2) / pixels_per_cell
    is_noise = still <= _EXPLAINED_BY_MOVEMENT * moved
    allowed = np.maximum(_OF_FINE_STRUCTURE * np.minimum(fine[:, None], fine[None, :]), np.where(is_noise, noise, 0.0))
    # A cell of a small image is made of few pixels, and their noise is averaged less.
    allowed = np.minimum(allowed, _LARGEST * max(1.0, cell_px / pixels_per_cell))
    allowed = np.minimum(allowed, _UNRELATED * np.minimum(contrast[:, None], contrast[None, :]))
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(allowed > 0, moved / allowed, _FAR)  # empty images are no proof of anything
    if not is_large:  # a small window may be all that differs between images of one background
        inside = values[:, mask_cells, 0] - values[:, mask_cells, 0].mean(axis=1, keepdims=True)
        products = inside @ inside.T
        own = np.diag(products)
        apart = np.sqrt(np.maximum(own[:, None] + own[None, :] - 2 * products, 0.0) / inside.shape[1])
        relative = np.maximum(relative, apart / _LARGEST)
    return np.minimum(relative, _FAR)


def _differences(
    values: NDArray[np.float64], cells: NDArray[np.bool_], grid_hw: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return how much the tone of images differs, [n, n]: a change of light taken out; a movement taken out as well;
    and the standard deviation [n] of each image's tone. All in grey levels.

    The least squares of all pairs at once: what their equations are made of are sums over the scalar products of the
    images' tones and gradients, so one product of matrices has all of them.
    """
    rows, columns = np.divmod(np.flatnonzero(cells), grid_hw[1])
    tone, along_x, along_y = (values[:, cells, channel] for channel in (0, 2, 3))
    turned = (columns - (grid_hw[1] - 1) / 2) * along_y - (rows - (grid_hw[0] - 1) / 2) * along_x
    terms = np.stack([tone, along_x, along_y, turned / max(grid_hw) * 2], axis=1)
    terms -= terms.mean(axis=2, keepdims=True)
    n, k, n_cells = terms.shape
    flat = terms.transpose(1, 0, 2).reshape(k * n, n_cells)
    own = np.einsum("iap,ibp->abi", terms, terms)
    still, moved = np.empty((n, n)), np.empty((n, n))
    for first in range(0, n, _ROWS_AT_ONCE):
        block = slice(first, first + _ROWS_AT_ONCE)
        products = (terms[block].transpose(1, 0, 2).reshape(-1, n_cells) @ flat.T).reshape(k, -1, k, n)
        products = np.ascontiguousarray(products.transpose(0, 2, 1, 3))  # [a, b, i, j]
        mine, theirs = own[:, :, block, None], own[:, :, None, :]
        squares = mine[0, 0] + theirs[0, 0] - 2 * products[0, 0]
        normal = (mine + theirs + products + products.transpose(1, 0, 2, 3)) / 4
        right = (mine[:, 0] - theirs[:, 0] - products[:, 0] + products[0]) / 2
        # Where nothing is to be seen, nothing is explained either.
        normal += n_cells * np.diag([1e-2, 1e-3, 1e-3, 1e-3])[:, :, None, None]
        left = squares
        for step in range(k):  # elimination: what each term explains of what those before it have left
            pivot = normal[step, step]
            left = left - np.square(right[step]) / pivot
            factor = normal[step + 1 :, step] / pivot
            right[step + 1 :] -= factor * right[step]
            normal[step + 1 :, step + 1 :] -= factor[:, None] * normal[step, step + 1 :]
            found, n_terms = (still, 1) if step == 0 else (moved, k)
            found[block] = np.sqrt(np.maximum(left, 0.0) / max(n_cells - 1 - n_terms, 1))
    return still, moved, np.sqrt(own[0, 0] / max(n_cells - 1, 1))


def _fine_structure(
    tone: NDArray[np.float64], cells: NDArray[np.bool_], grid_hw: tuple[int, int]
) -> NDArray[np.float64]:
    """Return how much neighbouring cells of each image differ [n], grey levels, at most of the image's places."""
    grid = tone.reshape(len(tone), *grid_hw)
    around = (grid[:, :-2, 1:-1] + grid[:, 2:, 1:-1] + grid[:, 1:-1, :-2] + grid[:, 1:-1, 2:]) / 4
    inner = cells.reshape(grid_hw)[1:-1, 1:-1]
    if not inner.any():
        return np.zeros(len(tone))
    differences = np.abs(grid[:, 1:-1, 1:-1] - around)[:, inner] / np.sqrt(1.25)
    return np.asarray(np.percentile(differences, _QUANTILE, axis=1) / _NORMAL_QUANTILE)
