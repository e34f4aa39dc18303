"""Which good image, and where in it, each region's peak is most like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Final

from backend.artifacts.image_store import ImageStore
from backend.errors import InspectionError
from backend.extractors.extraction import Rows
from backend.imaging.placement import Placement
from backend.memory_bank.bank import MemoryBank
from backend.memory_bank.nearest_places import Place, nearest_places
from backend.scoring.regions import NearestGood, Region

MOST: Final = 50
"""Regions that are looked up, the largest first: an image with more is not explained by each of them."""


def with_nearest_good(
    regions: Sequence[Region],
    bank: MemoryBank,
    rows: Rows,
    placement: Placement,
    images: ImageStore,
    *,
    part_id: str | None,
) -> tuple[Region, ...]:
    """Return regions with what the peaks of the first of them are nearest to; None where there is nothing.

    Args:
        regions: Of an inspection.
        bank: The memory that it was made with.
        rows: The embeddings of the image.
        placement: How the image was brought to the grid.
        images: The ROI's stored images.
        part_id: The part that the image shows, where it was learned.
    """

    @cache
    def stored(digest: str) -> tuple[str | None, tuple[int, int]]:
        try:
            image = images.get(digest, "ok")
        except InspectionError:  # the disk refuses: a part was inspected all the same
            image = None
        if image is None or image.is_damaged:
            return None, bank.placement.image_hw
        return image.file_name, image.image_hw

    def described(place: Place | None) -> NearestGood | None:
        if place is None:
            return None
        digest = bank.image_digests[place.image]
        name, image_hw = stored(digest)
        return NearestGood(
            image_digest=digest, name=name, bbox_xywh_px=_cell_box(place.cell, image_hw, placement.grid_hw)
        )

    if not regions:
        return ()
    chosen = regions[:MOST]
    cells = [_cell_at(region.peak_xy, bank, placement) for region in chosen]
    places = nearest_places(bank, rows, cells, part_id=part_id)
    found = (replace(region, nearest=described(place)) for region, place in zip(chosen, places, strict=True))
    return (*found, *regions[MOST:])


def _cell_at(xy: tuple[int, int], bank: MemoryBank, placement: Placement) -> int:
    """Return the learned cell nearest to a pixel: at the edge of a shape a pixel may lie in one that was not."""
    (height, width), (n_rows, n_columns) = placement.image_hw, placement.grid_hw
    row, column = (xy[1] + 0.5) * n_rows / height - 0.5, (xy[0] + 0.5) * n_columns / width - 0.5
    learned = bank.mask_cells.nonzero()[0]
    away = (learned // n_columns - row) ** 2 + (learned % n_columns - column) ** 2
    return int(learned[away.argmin()])


def _cell_box(cell: int, image_hw: tuple[int, int], grid_hw: tuple[int, int]) -> tuple[int, int, int, int]:
    (height, width), (n_rows, n_columns) = image_hw, grid_hw
    row, column = divmod(cell, n_columns)
    x, y = column * width // n_columns, row * height // n_rows
    return x, y, max(1, (column + 1) * width // n_columns - x), max(1, (row + 1) * height // n_rows - y)
