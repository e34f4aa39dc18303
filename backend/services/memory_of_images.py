"""From the images of a fit to the memory: which parts they show, where they agree, what is normal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from backend.artifacts.formats import LearnedFacts
from backend.extractors.base import FeatureExtractor
from backend.imaging.position_map import position_placement
from backend.memory_bank.alignment import alignment_of_parts
from backend.memory_bank.bank import MemoryBank
from backend.memory_bank.learning import learn
from backend.memory_bank.near_identical import MIN_PARTS_LEFT_OUT_TOGETHER, distinct_parts, near_identical_groups
from backend.memory_bank.whitening import fit_whitening
from backend.roi_mask import Shape, check_covers_cell, scale_shape, shape_fields, shape_from_fields, shape_mask
from backend.services.alignment_choice import choose_alignment
from backend.services.fit_request import FitProgress, FitRequest
from backend.services.training_images import TrainingImage


def memory_of(
    images: Mapping[str, TrainingImage],
    known: MemoryBank | LearnedFacts | None,
    request: FitRequest,
    extractor: FeatureExtractor,
    upload_hw: tuple[int, int],
    progress: FitProgress,
) -> MemoryBank:
    """Return the memory of images by digest, with the shape that is asked for or the one that was learned before.

    Raises:
        ShapeOutsideImage, ShapeTooSmall: If the shape covers no pixel, or less than one patch cell.
    """
    # The size that was fixed at the first fit, however large the image is that now comes first by digest.
    fitted_hw = upload_hw if known is None else known.placement.image_hw
    first = replace(images[min(images)].grid.placement, image_hw=fitted_hw)
    shape: Shape | None = None
    if request.shape is not None:
        shape = scale_shape(request.shape, upload_hw, first.image_hw)
    elif known is not None and known.shape is not None:
        shape = scale_shape(shape_from_fields(known.shape), known.placement.image_hw, first.image_hw)
    mask = shape_mask(shape, first.image_hw)
    if request.shape is not None and shape is not None:
        check_covers_cell(shape, mask, first.grid_hw)
    mask_cells = first.cell_coverage(mask).reshape(-1) > 0
    part_ids = {digest: image.part_id for digest, image in images.items()}
    position_maps = {digest: image.position_map for digest, image in images.items()}
    placement = position_placement(first.image_hw)
    position_cells = placement.cell_coverage(mask).reshape(-1) > 0
    near_identical = near_identical_groups(position_maps, part_ids, position_cells, placement)
    distinct = distinct_parts(part_ids, near_identical)
    if len(set(distinct.values())) >= MIN_PARTS_LEFT_OUT_TOGETHER:
        part_ids = distinct
    alignment = alignment_of_parts(position_maps, distinct, position_cells)
    choice = choose_alignment(request, known, alignment)
    whitening = None
    if extractor.whitens:
        rows = [images[digest].grid.embeddings[mask_cells] for digest in sorted(images)]
        whitening = fit_whitening(np.concatenate(rows))
    return learn(
        {digest: image.grid for digest, image in images.items()},
        part_ids=part_ids,
        position_maps=position_maps,
        mask_cells=mask_cells,
        shape=None if shape is None else shape_fields(shape),
        whitening=whitening,
        options=replace(request.options, aligned=choice.asked),
        mm_per_px=request.mm_per_px if known is None else known.mm_per_px,
        near_identical=near_identical,
        alignment=alignment,
        aligned=choice.aligned,
        precision=extractor.precision,
        placement=first,
        progress=progress.picks,
    )
