"""The area score: the highest level at which enough connected area of a map shows.

It is the largest value of the map's area opening (Vincent 1993, "Grayscale area openings and closings, their efficient
implementation and applications"), without the opening itself: what decides is the one place where the level is highest.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

_TILE_PX = 96
"""Edge of the square, around the most promising place, that is searched before the whole map."""


def area_score(image_map: NDArray[np.float32], mask: NDArray[np.bool_], min_area_px: int) -> float:
    """Return the highest t at which {map ≥ t} has a connected area (8 neighbours) of at least ``min_area_px`` pixels.

    Where no connected area of the mask has so many pixels, its largest one takes their place, and the score is the
    smallest value in that one.

    Exact: a level is never estimated, only the order in which levels are tried.

    Args:
        image_map: [H, W] float32, finite.
        mask: [H, W] bool with at least one True; nothing outside it counts.
        min_area_px: As ``find_regions`` counts; less than 1 counts as 1, which makes this the maximum.
    """
    field = image_map if mask.all() else np.where(mask, image_map, np.float32(-np.inf))
    if min_area_px <= 1:
        return float(field.max())
    # Two lower bounds, so that little of the whole map is left to look at: the best rectangle of that many pixels, and
    # the exact score of what surrounds it.
    width = math.ceil(math.sqrt(min_area_px))
    height = math.ceil(min_area_px / width)
    if height > field.shape[0] or width > field.shape[1]:
        level = np.float32(-np.inf)
    else:
        lowest = cv2.erode(
            field, np.ones((height, width), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=-math.inf
        )
        row, column = divmod(int(lowest.argmax()), field.shape[1])
        reach = max(_TILE_PX // 2, 2 * width)
        tile = field[max(row - reach, 0) : row + reach, max(column - reach, 0) : column + reach]
        level = _raised(tile, min_area_px, lowest[row, column])
    level = _raised(field, min_area_px, level)
    if np.isfinite(level):
        return float(level)
    largest = max(map(len, _large_areas(field, np.finfo(np.float32).min, 1)))
    return float(_raised(field, largest, level))


def _raised(field: NDArray[np.float32], min_area_px: int, level: np.float32) -> np.float32:
    """Return the score of a field [H, W] if it is above ``level``, else ``level``.

    Areas of a higher level lie within those of a lower one. So each area that is large enough just above the level is
    searched by itself, and what it reaches is the level that the next one has to pass.
    """
    field = _box_of(field, field > level)
    areas = _large_areas(field, _next_above(level), min_area_px)
    # A level leaves the values from it on, so an area reaches no higher than its value of that rank. The most promising
    # one first: it may leave nothing for the others to raise.
    values_of = [np.sort(field.ravel()[pixels])[: len(pixels) - min_area_px + 1] for pixels in areas]
    for number in sorted(range(len(areas)), key=lambda number: values_of[number][-1], reverse=True):
        values = values_of[number]
        if values[-1] <= level:
            break
        part = _cut_out(field, areas[number])
        if _labelled(part, _next_above(level), min_area_px) is None:
            continue
        reached, missed = int(np.searchsorted(values, level, side="right")), len(values)
        middle = missed - 1  # a single hill reaches its bound
        while missed - reached > 1:
            if _labelled(part, values[middle], min_area_px) is None:
                missed = middle
            else:
                reached = middle
            middle = (reached + missed) // 2
        level = values[reached]
    return level


def _large_areas(field: NDArray[np.float32], level: np.float32 | float, min_area_px: int) -> list[NDArray[np.intp]]:
    """Return the flat positions of each connected area of {field ≥ level} with ``min_area_px`` pixels or more."""
    found = _labelled(field, level, min_area_px)
    if found is None:
        return []
    pixels, labels, areas_px = found
    kept = areas_px[labels] >= min_area_px
    pixels, labels = pixels[kept], labels[kept]
    order = np.argsort(labels, kind="stable")
    return np.split(pixels[order], np.flatnonzero(np.diff(labels[order])) + 1)


def _labelled(
    field: NDArray[np.float32], level: np.float32 | float, min_area_px: int
) -> tuple[NDArray[np.intp], NDArray[np.int32], NDArray[np.intp]] | None:
    """Return the flat positions of {field ≥ level}, the area of each, and the areas' sizes; None if all are smaller."""
    hot = field >= level
    pixels = np.flatnonzero(hot)
    if len(pixels) < min_area_px:
        return None
    found = cv2.connectedComponents(hot.view(np.uint8), connectivity=8)[1].ravel()
    labels = found[pixels].astype(np.int32, copy=False)
    areas_px = np.bincount(labels)
    return (pixels, labels, areas_px) if areas_px.max() >= min_area_px else None


def _box_of(field: NDArray[np.float32], hot: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the smallest box of a field that holds all that is hot, or nothing of it where nothing is."""
    rows, columns = np.flatnonzero(hot.any(axis=1)), np.flatnonzero(hot.any(axis=0))
    if len(rows) == 0:
        return field[:0]
    return np.ascontiguousarray(field[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _cut_out(field: NDArray[np.float32], pixels: NDArray[np.intp]) -> NDArray[np.float32]:
    """Return an area by itself, in its box [h, w] float32; -inf around it."""
    rows, columns = np.divmod(pixels, field.shape[1])
    top, left = rows.min(), columns.min()
    part = np.full((rows.max() - top + 1, columns.max() - left + 1), -np.inf, np.float32)
    part[rows - top, columns - left] = field.ravel()[pixels]
    return part


def _next_above(level: np.float32) -> np.float32:
    return np.float32(np.nextafter(level, np.float32(np.inf)))
