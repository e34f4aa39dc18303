"""PatchCore's nouns: the patch grid of one image, and the memory bank of a ROI.

Roth et al. 2022, "Towards Total Recall in Industrial Anomaly Detection", arXiv:2106.08265. We deviate in three places:
the coreset is the exact greedy, not one on a random projection; the image score is a percentile of the map or another
plain statistic (not the re-weighted maximum), and every memory vector remembers the image that it came from, so that an
image the memory was built from can be scored without its own vectors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.imaging.placement import Placement
from backend.memory_bank.fit_options import FitOptions
from backend.memory_bank.global_evidence import GlobalEvidence, evidence
from backend.memory_bank.index import build_index
from backend.memory_bank.local_bank import LocalBank
from backend.memory_bank.near_identical import distinct_parts
from backend.memory_bank.nearest import NearestNeighbours, RowsOnDevice
from backend.memory_bank.whitening import Whitening
from backend.memory_bank.windows import WindowSearch, nearest_in_windows
from backend.utils import canonical_json

__all__ = ["FitOptions", "MemoryBank", "PatchGrid"]


@dataclass(frozen=True, kw_only=True)
class PatchGrid:
    """The patch embeddings of one image.

    Attributes:
        embeddings: [Ht*Wt, D] float32, row-major over the grid: unit rows, or raw responses where the extractor
            whitens.
        placement: How the image was brought to the grid, and the way back.
        extractor_id: Who made the numbers.
    """

    embeddings: NDArray[np.float32] = field(compare=False)
    placement: Placement
    extractor_id: str

    def __post_init__(self) -> None:
        rows, columns = self.placement.grid_hw
        if self.embeddings.ndim != 2 or len(self.embeddings) != rows * columns:
            raise ValueError(f"a {rows}×{columns} grid needs {rows * columns} rows, got {self.embeddings.shape}")


@dataclass(frozen=True, kw_only=True)
class MemoryBank:
    """What a ROI has learned.

    Attributes:
        vectors: [M, D] float32, unit rows: the coreset.
        source: [M] int32, the image (index into ``image_digests``) that each vector came from.
        cells: [M] int32, the cell of the grid that it lay at.
        image_digests: Digests of the learned images, ascending.
        part_ids: For each image the physical part that it shows; images of one part share the string.
        placement: Of the image that the ROI was first fitted with; all images of the ROI share its grid.
        mask_cells: [Ht*Wt] bool, the cells that were learned.
        shape: JSON object of the learned shape in pixels of ``placement.image_hw``, or None for the whole image.
        loo_distances: [n, Ht*Wt] float32, each image's distances to the vectors of *other* parts; NaN for none.
        position_maps: [n, cells, 4] float16, each image's ``position_map``, on a grid of its own.
        near_identical: Groups of images, by their digests, that show one part by what can be seen of it; see
            ``backend.memory_bank.near_identical``. Where there are parts enough, ``part_ids`` say so as well.
        alignment: How well the parts agree by position, see ``backend.memory_bank.alignment``; None for too few parts.
        aligned: Whether the ROI is taken for aligned; None while that is undecided.
        extractor_id: Who made the embeddings.
        precision: What the extractor multiplied in.
        whitening: What brings the extractor's raw rows to unit rows, or None when they are unit rows already.
        options: What the memory was fitted with.
        n_embeddings: Rows that the coreset was taken from.
        mm_per_px: Millimetres per pixel of the learned images.
        local: What is normal at each place, where the parts lie alike; None where ``vectors`` alone score.
    """

    vectors: NDArray[np.float32] = field(compare=False)
    source: NDArray[np.int32] = field(compare=False)
    cells: NDArray[np.int32] = field(compare=False)
    image_digests: tuple[str, ...]
    part_ids: tuple[str, ...]
    placement: Placement
    mask_cells: NDArray[np.bool_] = field(compare=False)
    shape: Mapping[str, Any] | None
    loo_distances: NDArray[np.float32] = field(compare=False)
    position_maps: NDArray[np.float16] = field(compare=False)
    near_identical: tuple[tuple[str, ...], ...] = ()
    alignment: float | None = None
    aligned: bool | None = None
    extractor_id: str
    precision: str = "fp32"
    whitening: Whitening | None = field(compare=False)
    options: FitOptions
    n_embeddings: int
    mm_per_px: float
    local: LocalBank | None = field(compare=False, default=None)

    def __post_init__(self) -> None:
        n, cells = len(self.image_digests), self.placement.grid_hw[0] * self.placement.grid_hw[1]
        if (
            self.vectors.ndim != 2
            or len(self.vectors) == 0
            or not len(self.vectors) == len(self.source) == len(self.cells)
        ):
            raise ValueError("a memory needs vectors [M, D] with M ≥ 1, and a source and a cell for each")
        if len(self.part_ids) != n or self.loo_distances.shape != (n, cells) or self.mask_cells.shape != (cells,):
            raise ValueError("part_ids, loo_distances and mask_cells must fit the images and the grid")
        if self.position_maps.ndim != 3 or len(self.position_maps) != n:
            raise ValueError("position_maps must hold a map [cells, channels] of each image")
        if not (0 <= self.source.min() <= self.source.max() < n and 0 <= self.cells.min() <= self.cells.max() < cells):
            raise ValueError("source and cells must point at places of learned images")
        for array in (self.vectors, self.source, self.cells, self.mask_cells, self.loo_distances, self.position_maps):
            array.setflags(write=False)

    @property
    def n_local_rows(self) -> int:
        """Rows of the local bank: one per image and learned cell, or 0 without one."""
        return 0 if self.local is None else self.local.rows.shape[0] * self.local.rows.shape[1]

    @property
    def coreset_rate_applied(self) -> float:
        """Vectors kept ÷ rows seen."""
        return len(self.vectors) / self.n_embeddings

    @property
    def n_parts(self) -> int:
        """Number of different parts among the images, near-identical ones counted once: what a promise can rest on."""
        return len(set(self.distinct_parts.values()))

    @cached_property
    def distinct_parts(self) -> dict[str, str]:
        """The part of each image by digest, by the client's word and by what can be seen."""
        return distinct_parts(self._part_by_digest, self.near_identical)

    @cached_property
    def scored_beside_own_part(self) -> frozenset[str]:
        """Images whose leave-one-out score another image of the same part has made small: too few parts to leave both
        out."""
        parts = self._part_by_digest
        return frozenset(
            digest for group in self.near_identical if len({parts[each] for each in group}) > 1 for digest in group
        )

    @property
    def n_parts_left_out(self) -> int:
        """Number of those that were scored without any image of theirs: the draws that a promise rests on."""
        parts = self.distinct_parts
        return self.n_parts - len({parts[digest] for digest in self.scored_beside_own_part})

    @property
    def is_local(self) -> bool:
        """Whether patches are compared by position: the ROI is aligned, and has the parts that this takes."""
        return self.local is not None

    @cached_property
    def checksum(self) -> str:
        """SHA-256 over everything that changes a score. A calibration names it; another memory has another."""
        digest = hashlib.sha256(canonical_json(self.facts()))
        for array in self.arrays().values():
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data.cast("B"))
        return digest.hexdigest()

    @cached_property
    def _part_by_digest(self) -> dict[str, str]:
        return dict(zip(self.image_digests, self.part_ids, strict=True))

    @cached_property
    def index(self) -> NearestNeighbours:
        """The exact index over all vectors."""
        return build_index(self.vectors)

    def facts(self) -> dict[str, Any]:
        """Return everything but the arrays, as JSON types."""
        return {
            "image_digests": list(self.image_digests),
            "part_ids": list(self.part_ids),
            "near_identical": [list(group) for group in self.near_identical],
            "image_hw": list(self.placement.image_hw),
            "input_hw": list(self.placement.input_hw),
            "grid_hw": list(self.placement.grid_hw),
            "shape": None if self.shape is None else dict(self.shape),
            "extractor_id": self.extractor_id,
            "precision": self.precision,
            "options": self.options.to_fields(),
            "n_embeddings": self.n_embeddings,
            "mm_per_px": self.mm_per_px,
            "alignment": self.alignment,
            "aligned": self.aligned,
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by name, those of the whitening and the local bank with these prefixes."""
        whitening = {} if self.whitening is None else self.whitening.to_arrays()
        local = {} if self.local is None else self.local.to_arrays()
        return {
            "vectors": self.vectors,
            "source": self.source,
            "cells": self.cells,
            "mask_cells": self.mask_cells,
            "loo_distances": self.loo_distances,
            "position_maps": self.position_maps,
            **{f"whitening_{name}": array for name, array in whitening.items()},
            **{f"local_{name}": array for name, array in local.items()},
        }

    def unit_rows(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return an extractor's rows [N, D'] as unit rows [N, D], whitened where this memory whitens."""
        return embeddings if self.whitening is None else self.whitening.apply(embeddings)

    @cached_property
    def loo_scores(self) -> NDArray[np.float32]:
        """[n, Ht*Wt] float32: what the cells of each learned image score without its part, else NaN."""
        if self.local is None:
            return self.loo_distances
        scores = np.full_like(self.loo_distances, np.nan)
        scores[:, self.mask_cells] = self.local.scores
        return scores

    def cell_scores(
        self, embeddings: NDArray[np.float32] | RowsOnDevice, *, k: int | None = None
    ) -> NDArray[np.float32]:
        """Return the score [N] float32 in [0, 2] of each cell: its distance, or (else NaN) its local score.

        Args:
            embeddings: The extractor's rows [N, D'].
            k: Neighbours that a distance to the coreset is the mean of; the memory's own by default.
        """
        if self.local is None:
            return self.distances(embeddings, k=k)
        return self._local_scores(self.local, embeddings, None, k)

    def cell_scores_without(
        self, embeddings: NDArray[np.float32] | RowsOnDevice, part_id: str, *, k: int | None = None
    ) -> NDArray[np.float32] | None:
        """Return the scores as if a part had not been learned, or None when no vector is left."""
        if self.local is None:
            return self.distances_without(embeddings, part_id, k=k)
        return self._local_scores(self.local, embeddings, part_id, k)

    def _local_scores(
        self, local: LocalBank, embeddings: NDArray[np.float32] | RowsOnDevice, part_id: str | None, k: int | None
    ) -> NDArray[np.float32]:
        rows = self.unit_rows(np.asarray(embeddings)[self.mask_cells])
        part = None if part_id is None else self._part_numbers.get(part_id)
        k = k or self.options.k
        search: WindowSearch = nearest_in_windows
        if part is not None:
            found = evidence(self.vectors, local.parts[self.source] != part, rows, k)
        elif self.whitening is None and not isinstance(embeddings, np.ndarray):
            distances, chosen = embeddings.nearest(self.checksum, self.vectors, min(k, len(self.vectors)))
            found = GlobalEvidence(
                distances=distances.mean(axis=1, dtype=np.float32)[self.mask_cells], chosen=chosen[self.mask_cells, 0]
            )
            search = embeddings.window_search(self.checksum)
        else:
            found = evidence(self.vectors, self.index, rows, k)
        scores = np.full(len(self.mask_cells), np.nan, dtype=np.float32)
        scores[self.mask_cells] = local.score(rows, found, part, search=search)
        return scores

    @cached_property
    def _part_numbers(self) -> dict[str, int]:
        """The number of each part in the local bank."""
        return {part: number for number, part in enumerate(sorted(set(self.part_ids)))}

    def distances(self, embeddings: NDArray[np.float32] | RowsOnDevice, *, k: int | None = None) -> NDArray[np.float32]:
        """Return the distance [N] float32 in [0, 2] of an extractor's rows [N, D'] to the coreset; ``k`` as above."""
        k = min(k or self.options.k, len(self.vectors))
        if self.whitening is None and not isinstance(embeddings, np.ndarray):
            return np.asarray(embeddings.nearest(self.checksum, self.vectors, k)[0].mean(axis=1, dtype=np.float32))
        return self.index.knn(self.unit_rows(np.asarray(embeddings)), k)

    def distances_without(
        self, embeddings: NDArray[np.float32] | RowsOnDevice, part_id: str, *, k: int | None = None
    ) -> NDArray[np.float32] | None:
        """Return the distances to the vectors that did not come from a part, or None when no vector is left."""
        keep = np.asarray([self.part_ids[image] != part_id for image in self.source.tolist()])
        if not keep.any():
            return None
        rows = self.unit_rows(np.asarray(embeddings))
        return evidence(self.vectors, keep, rows, k or self.options.k).distances

    def part_of(self, image_digest: str) -> str | None:
        """Return the part that a learned image shows, or None for an image that was not learned."""
        return self._part_by_digest.get(image_digest)
