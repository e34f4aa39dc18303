"""Scores of stored images, learned or not: what a calibration from them rests on, and is renewed from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.artifacts.image_store import ImageStore
from backend.artifacts.stored_image import StoredImage
from backend.calib import ScoreMode, ScoreRule
from backend.errors import InspectionError, StorageFailed, StorageFull, Unavailable
from backend.extractors.base import FeatureExtractor, embeddings_key
from backend.extractors.extraction import Extraction
from backend.imaging.image_codec import decode_image
from backend.imaging.placement import Placement
from backend.memory_bank.bank import MemoryBank
from backend.roi_mask import Shape, parse_shape, scale_shape, shape_fields, shape_from_fields
from backend.scoring.anomaly_map import anomaly_map
from backend.scoring.image_score import image_score, image_scores
from backend.scoring.inspection import blur_px, mask_within
from backend.services.consistency import PhysicalSize, check_aspect_ratio, on_fitted_grid, scale_of_image
from backend.services.learned_images import parts_of_images

_NAMED = 3
"""Images that a warning names."""


@dataclass(frozen=True, kw_only=True)
class ImageDistances:
    """What the cells of an image score under a memory.

    Attributes:
        image: The image.
        distances: [Ht*Wt] float32, row-major; NaN where nothing was learned.
        image_hw: Height and width that its maps have, px.
        mm_per_px: Millimetres per pixel of these.
    """

    image: StoredImage
    distances: NDArray[np.float32]
    image_hw: tuple[int, int]
    mm_per_px: float

    def score(self, bank: MemoryBank, rule: ScoreRule, shape: Shape | None, shape_hw: tuple[int, int]) -> float:
        """Return the image score within a shape in pixels of an image of ``shape_hw``, of what was learned."""
        image_map, mask = self.map_within(bank, rule, shape, shape_hw)
        return image_score(image_map, mask, rule, mm_per_px=self.mm_per_px)

    def scores_by_mode(self, bank: MemoryBank, rule: ScoreRule) -> Mapping[ScoreMode, float]:
        """Return the image score within all that was learned, under the rule with each of the score modes."""
        image_map, mask = self.map_within(bank, rule, None, self.image.image_hw)
        return image_scores(image_map, mask, rule, mm_per_px=self.mm_per_px)

    def map_within(
        self, bank: MemoryBank, rule: ScoreRule, shape: Shape | None, shape_hw: tuple[int, int]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the map [H, W] float32 and the mask [H, W] bool within a shape; arguments as of ``score``."""
        placement = replace(bank.placement, image_hw=self.image_hw)
        scaled = None if shape is None else scale_shape(shape, shape_hw, self.image_hw)
        mask = mask_within(scaled, bank, self.image_hw)
        blur_sigma = blur_px(rule, bank, self.mm_per_px)
        return anomaly_map(self.distances, placement, mask, blur_sigma=blur_sigma), mask


@dataclass(frozen=True, kw_only=True)
class LabelScores:
    """The scores of the stored images of one label.

    Attributes:
        by_part: The largest score of each part.
        images: Digests of the images that were scored.
        shapes: The shape of each, a JSON object in pixels of the memory's images; None for all that was learned.
        warnings: Which could not be.
    """

    by_part: tuple[float, ...] = ()
    images: tuple[str, ...] = ()
    shapes: tuple[Mapping[str, Any] | None, ...] = ()
    warnings: tuple[str, ...] = ()


class StoredScores:
    """Scores the stored images of a ROI; embeddings that are missing are made.

    Args:
        images: The images.
        extractor: The one that the memory was made with.
        extraction: Brings images to the device; inspections go first.
        max_pixels: Largest image, px.
        keeps: Whether embeddings that were made are stored.
    """

    def __init__(
        self,
        images: ImageStore,
        extractor: FeatureExtractor,
        extraction: Extraction,
        *,
        max_pixels: int,
        keeps: bool = True,
    ) -> None:
        self.images = images
        self._extractor, self._extraction = extractor, extraction
        self._max_pixels, self._keeps = max_pixels, keeps
        self._made: dict[str, NDArray[np.float32]] = {}

    def prepare(self, stored: Sequence[StoredImage], fitted: Placement) -> None:
        """Make the embeddings of images that are missing; what cannot be made is named when the image is scored.

        Raises:
            Unavailable: If nothing can be made now.
        """
        for image in stored:
            try:
                rows = self._rows(image, fitted)
            except InspectionError as error:
                if not is_of_image(error):
                    raise
                continue
            if not self._keeps:
                self._made[image.digest] = rows

    def distances(self, image: StoredImage, bank: MemoryBank) -> ImageDistances | None:
        """Return what an image's cells score, a learned image's without its part; None where no other part is left.

        Raises:
            ArtefactCorrupt, NotFound, AspectRatioMismatch: If it is damaged or gone, or does not agree with the memory.
            Unavailable: If its embeddings cannot be made now.
        """
        if image.digest in bank.image_digests:
            own = bank.loo_scores[bank.image_digests.index(image.digest)]
            if not np.isfinite(own).any():
                return None
            fitted = PhysicalSize.of(bank)
            return ImageDistances(image=image, distances=own, image_hw=fitted.image_hw, mm_per_px=fitted.mm_per_px)
        distances = bank.cell_scores(self._rows(image, bank.placement))
        learned = np.where(bank.mask_cells, distances, np.nan).astype(np.float32)
        sent = PhysicalSize(image_hw=image.image_hw, mm_per_px=image.mm_per_px or bank.mm_per_px)
        scale = scale_of_image(PhysicalSize.of(bank), sent, image.file_name)
        return ImageDistances(image=image, distances=learned, image_hw=image.image_hw, mm_per_px=scale.mm_per_px)

    def all_of(self, stored: Sequence[StoredImage], bank: MemoryBank) -> tuple[list[ImageDistances], tuple[str, ...]]:
        """Return ``distances`` of images, and a warning where some cannot be scored."""
        found, failed = [], []
        for image in stored:
            try:
                of_image = self.distances(image, bank)
            except InspectionError as error:
                if not is_of_image(error):
                    raise
                failed.append((image.file_name, error.sentence))
                continue
            if of_image is not None:
                found.append(of_image)
        return found, sentences_of_failed(failed, len(stored))

    def scores(
        self, stored: Sequence[StoredImage], bank: MemoryBank, rule: ScoreRule, *, within_own_shapes: bool = False
    ) -> LabelScores:
        """Return the scores of stored images of one label.

        Args:
            stored: The images.
            bank: The memory.
            rule: How maps become scores.
            within_own_shapes: Score each within the shape of its metadata, as ``/infer_dataset`` does; else within all
                that was learned, as the memory's own images are scored.
        """
        measured, warnings = self.all_of(stored, bank)
        scored: list[tuple[StoredImage, float]] = []
        shapes, failed = [], []
        for each in measured:
            try:
                shape = own_shape(each.image) if within_own_shapes else None
                score = each.score(bank, rule, shape, each.image.image_hw)
            except InspectionError as error:  # a shape that is none, or that covers nothing
                failed.append((each.image.file_name, error.sentence))
                continue
            scored.append((each.image, score))
            shapes.append(learned_fields(shape, each.image.image_hw, bank))
        parts = {} if not within_own_shapes else parts_of_images(bank, (image for image, _ in scored), self._pixels)
        return LabelScores(
            by_part=worst_by_part(scored, {**bank.distinct_parts, **parts}),
            images=tuple(image.digest for image, _ in scored),
            shapes=tuple(shapes),
            warnings=(*warnings, *sentences_of_failed(failed, len(stored))),
        )

    def _pixels(self, image: StoredImage) -> NDArray[np.uint8]:
        return decode_image(self.images.read(image), max_pixels=self._max_pixels, name=image.file_name)

    def _rows(self, image: StoredImage, fitted: Placement) -> NDArray[np.float32]:
        """Return the extractor's rows [Ht*Wt, D] of an image."""
        made_by, n_cells = embeddings_key(self._extractor), fitted.grid_hw[0] * fitted.grid_hw[1]
        rows = self._made.get(image.digest)
        if rows is None:
            rows = self.images.get_embeddings(image.digest, made_by)
        if rows is not None and len(rows) == n_cells:
            return rows
        pixels = self._pixels(image)
        check_aspect_ratio(fitted, (pixels.shape[0], pixels.shape[1]), image.file_name)
        on_grid = on_fitted_grid(pixels, self._extractor, fitted, image.file_name)
        rows = self._extraction.learn(self._extractor, [on_grid])[0]
        if self._keeps:
            with suppress(StorageFull, StorageFailed):  # they can be made again: no inspection fails for a full disk
                self.images.put_embeddings(image.digest, made_by, rows)
        return rows


def worst_by_part(scores: Iterable[tuple[StoredImage, float]], parts: Mapping[str, str]) -> tuple[float, ...]:
    """Return the largest score of each part, in the order of the images.

    Args:
        scores: Images and their scores.
        parts: The part of images by digest, where it is not the one that they are stored with.
    """
    worst: dict[str, float] = {}
    for image, score in scores:
        part = parts.get(image.digest, image.part_id)
        worst[part] = max(score, worst.get(part, 0.0))
    return tuple(worst.values())


def learned_fields(shape: Shape | None, image_hw: tuple[int, int], bank: MemoryBank) -> Mapping[str, Any] | None:
    """Return a shape in pixels of an image as a JSON object in pixels of the memory's images; None for no shape."""
    return None if shape is None else shape_fields(scale_shape(shape, image_hw, bank.placement.image_hw))


def own_shape(image: StoredImage) -> Shape | None:
    """Return the shape in an image's metadata, an object or a JSON text; the published client says ``shape_json``.

    Raises:
        BadShape, InvalidInput: If it is none.
    """
    shape = next((image.meta[name] for name in ("shape", "shape_json") if image.meta.get(name) is not None), None)
    return parse_shape(shape) if shape is None or isinstance(shape, str) else shape_from_fields(shape)


def is_of_image(error: InspectionError) -> bool:
    """Return whether an error is a fault of one image, so that others can be scored all the same."""
    return not isinstance(error, Unavailable) or isinstance(error, StorageFailed)


def sentences_of_failed(failed: Sequence[tuple[str, str]], n_all: int) -> tuple[str, ...]:
    """Return the warning that some of ``n_all`` images, given by name and reason, could not be scored; or nothing."""
    if not failed:
        return ()
    names = ", ".join(name for name, _ in failed[:_NAMED])
    more = f" and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
    return (f"{len(failed)} of {n_all} stored images could not be scored ({names}{more}): {failed[0][1]}",)
