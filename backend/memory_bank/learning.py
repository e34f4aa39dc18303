"""From the patch grids of good images to the memory bank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.imaging.placement import Placement
from backend.memory_bank.bank import FitOptions, MemoryBank, PatchGrid
from backend.memory_bank.coreset import Progress, coreset_size, kcenter_greedy
from backend.memory_bank.global_evidence import GlobalEvidence, evidence
from backend.memory_bank.local_bank import LocalBank
from backend.memory_bank.local_learning import learn_locally
from backend.memory_bank.whitening import Whitening
from backend.memory_bank.windows import LearnedCells


def learn(
    grids: Mapping[str, PatchGrid],
    *,
    part_ids: Mapping[str, str],
    position_maps: Mapping[str, NDArray[np.float16]],
    mask_cells: NDArray[np.bool_],
    shape: Mapping[str, Any] | None,
    whitening: Whitening | None,
    options: FitOptions,
    mm_per_px: float,
    near_identical: tuple[tuple[str, ...], ...] = (),
    alignment: float | None = None,
    aligned: bool | None = None,
    precision: str = "fp32",
    placement: Placement | None = None,
    progress: Progress | None = None,
) -> MemoryBank:
    """Return the memory of a ROI. The same images give the same memory, in whatever order they came.

    Arguments that are not listed are those of ``MemoryBank``.

    Args:
        grids: Patch grids by image digest; all on one grid and from one extractor.
        part_ids: The part of each image; an image that is missing here is a part of its own.
        position_maps: The position map of each image.
        mask_cells: [Ht*Wt] bool, the cells to learn; at least one.
        shape: JSON object of the shape that ``mask_cells`` was made from, in pixels of ``placement``.
        placement: That of the ROI; None for that of the first image by digest.
        progress: Called with (done, total) while the coreset is picked.

    Raises:
        ValueError: If there is no image, the grids disagree, or no cell is learned.
    """
    digests = tuple(sorted(grids))
    if not digests or not mask_cells.any():
        raise ValueError("a memory needs at least one image and one cell")
    first = grids[digests[0]]
    if any(
        g.placement.grid_hw != first.placement.grid_hw or g.extractor_id != first.extractor_id for g in grids.values()
    ):
        raise ValueError("the images of a ROI must share one grid and one extractor")
    rows_by_image = [
        grids[d].embeddings[mask_cells] if whitening is None else whitening.apply(grids[d].embeddings[mask_cells])
        for d in digests
    ]
    cells = int(mask_cells.sum())
    rows = np.concatenate(rows_by_image, axis=0)
    m = coreset_size(len(rows), options.coreset_rate)
    picks = kcenter_greedy(rows, m, seed=options.seed, progress=progress)
    vectors, source = np.ascontiguousarray(rows[picks]), (picks // cells).astype(np.int32)
    vector_cells = np.flatnonzero(mask_cells)[picks % cells].astype(np.int32)
    parts = tuple(part_ids.get(digest, digest) for digest in digests)
    own = _leave_one_part_out(rows_by_image, vectors, source, parts, options.k)
    loo_distances = np.full((len(digests), len(mask_cells)), np.nan, dtype=np.float32)
    for image, found in enumerate(own):
        if found is not None:
            loo_distances[image, mask_cells] = found.distances
    return MemoryBank(
        vectors=vectors,
        source=source,
        cells=vector_cells,
        image_digests=digests,
        part_ids=parts,
        placement=placement or first.placement,
        mask_cells=mask_cells.copy(),
        shape=shape,
        loo_distances=loo_distances,
        position_maps=np.stack([position_maps[digest] for digest in digests]),
        near_identical=near_identical,
        alignment=alignment,
        aligned=aligned,
        extractor_id=first.extractor_id,
        precision=precision,
        whitening=whitening,
        options=options,
        n_embeddings=len(rows),
        mm_per_px=mm_per_px,
        local=_local_bank(
            rows_by_image, parts, first.placement.grid_hw, mask_cells, own, alignment if aligned else None, whitening
        ),
    )


def _local_bank(
    rows_by_image: Sequence[NDArray[np.float32]],
    parts: Sequence[str],
    grid_hw: tuple[int, int],
    mask_cells: NDArray[np.bool_],
    own: Sequence[GlobalEvidence | None],
    alignment: float | None,
    whitening: Whitening | None,
) -> LocalBank | None:
    known = [each for each in own if each is not None]
    if alignment is None or len(known) < len(own):  # all vectors came from one part
        return None
    cells = LearnedCells(grid_hw=grid_hw, mask_cells=mask_cells.copy())
    noise = None if whitening is None else whitening.noise_covariance()
    return learn_locally(rows_by_image, parts=parts, cells=cells, evidence=known, alignment=alignment, noise=noise)


def _leave_one_part_out(
    rows_by_image: Sequence[NDArray[np.float32]],
    vectors: NDArray[np.float32],
    source: NDArray[np.int32],
    parts: Sequence[str],
    k: int,
) -> list[GlobalEvidence | None]:
    """Return what the vectors of other parts say of each image; None for an image to which no other part left one."""
    # Dropping a part's own vectors gives the same false-alarm rates as building the coreset again without the part
    # (measured on seven sets), and costs one search.
    part_of_vector = np.asarray(parts, dtype=object)[source]
    found: list[GlobalEvidence | None] = []
    for image, rows in enumerate(rows_by_image):
        others = part_of_vector != parts[image]
        found.append(evidence(vectors, others, rows, k) if others.any() else None)
    return found
