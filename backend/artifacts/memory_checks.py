"""Whether a memory or a calibration that was read from a file can be used: a digest proves nothing of who made it.

What is made by hand and sealed rightly would be served, and fail in the middle of an inspection or, worse, decide.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray

from backend.calib import OWN_SHAPES, SCORE_MODES, Calibration, Method, ScoreRule, ScoresFrom
from backend.errors import InspectionError
from backend.imaging.position_map import CHANNELS, position_placement
from backend.memory_bank.alignment import Aligned
from backend.memory_bank.bank import FitOptions, MemoryBank
from backend.memory_bank.local_bank import LocalBank
from backend.roi_mask import shape_from_fields
from backend.utils import MAX_MM_PER_PX, MIN_MM_PER_PX

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_MOST_PX: Final = 170_000_000
_UNIT_TOLERANCE: Final = 1e-3
_LARGEST_DISTANCE: Final = 2.0 + _UNIT_TOLERANCE
_OUR_EXTRACTORS: Final = ("filter-bank/", "dinov2-")
_FILTER_BANK_COLUMNS: Final = 39


def check_memory_usable(bank: MemoryBank, *, of_any: bool = False) -> None:
    """Raise ValueError if a memory cannot have come from a fit.

    What every extractor's rows have in common is only looked at with the extractors of this service, or where it is
    asked for ``of_any``: whoever tries others knows what he does.
    """
    _check_facts(bank)
    check_options_usable(bank.options)
    n, n_cells, n_vectors = len(bank.image_digests), len(bank.mask_cells), len(bank.vectors)
    _array(bank.vectors, "vectors", np.float32, (n_vectors, None), is_finite=True)
    _array(bank.source, "source", np.int32, (n_vectors,))
    _array(bank.mask_cells, "mask_cells", np.bool_, (n_cells,))
    _require(bool(bank.mask_cells.any()), "it has learned no cell")
    _array(bank.loo_distances, "loo_distances", np.float32, (n, n_cells))
    _require(not np.isinf(bank.loo_distances).any(), "loo_distances are infinite")
    _require(not (bank.loo_distances < 0).any(), "loo_distances are below 0")
    _array(bank.position_maps, "position_maps", np.float16, (n, None, None), is_finite=True)
    _check_width(bank)
    if bank.local is not None:
        _check_local(bank, bank.local)
    if of_any or bank.extractor_id.startswith(_OUR_EXTRACTORS):
        _check_rows(bank)


def _check_rows(bank: MemoryBank) -> None:
    lengths = np.sqrt(np.einsum("nd,nd->n", bank.vectors, bank.vectors, dtype=np.float64))
    _require(bool(np.abs(lengths - 1).max() < _UNIT_TOLERANCE), "its vectors are no unit rows")
    _require(not (bank.loo_distances > _LARGEST_DISTANCE).any(), "loo_distances are none of unit rows")
    _require(all(map(_is_digest, bank.image_digests)), "it names no images")
    rows, columns = position_placement(bank.placement.image_hw).grid_hw
    n_images = len(bank.image_digests)
    _array(bank.position_maps, "position_maps", np.float16, (n_images, rows * columns, len(CHANNELS)))


def check_calibration_usable(calibration: Calibration) -> None:
    """Raise ValueError if a calibration cannot have been set by this service."""
    counts = (calibration.n_ok, calibration.n_ng, calibration.ok_rejected, calibration.ng_caught)
    _require(all(_is_whole(count, 0) for count in counts), "its counts are none")
    numbers = (calibration.threshold, calibration.p99_ok, calibration.ok_mean, calibration.ng_mean, calibration.margin)
    optional = () if calibration.p5_ng is None else (calibration.p5_ng,)
    bounds = vars(calibration.bounds).values()
    _require(all(_is_number(number, 0) for number in (*numbers, *optional, *bounds)), "its numbers are none")
    _require(_is_number(calibration.ok_percentile, 0, 100), "its percentile is none")
    _require(_is_number(calibration.mm_per_px, MIN_MM_PER_PX, MAX_MM_PER_PX), "its scale is none")
    _require(calibration.method in get_args(Method), "its method is unknown")
    sources = get_args(ScoresFrom)
    _require(calibration.ok_scores_from in sources, "nobody knows where its scores come from")
    _require(calibration.ng_scores_from in (*sources, None), "nobody knows where its scores come from")
    _check_rule(calibration.rule)
    texts = (calibration.memory_checksum, *calibration.ok_images, *calibration.ng_images, *calibration.warnings)
    _require(all(isinstance(text, str) for text in texts), "it names no memory, images or warnings")
    if calibration.shape != OWN_SHAPES:
        _check_shape(calibration.shape)


def check_learned_usable(
    image_hw: tuple[int, int], grid_hw: tuple[int, int], mm_per_px: object, extractor_id: object
) -> None:
    """Raise ValueError if the facts of a memory that is damaged or of an older format are none."""
    _require(all(_is_whole(edge, 1) for edge in (*image_hw, *grid_hw)), "its sizes are none")
    _require(image_hw[0] * image_hw[1] <= _MOST_PX, "its images are too large")
    _require(_is_number(mm_per_px, MIN_MM_PER_PX, MAX_MM_PER_PX), "its scale is none")
    _require(isinstance(extractor_id, str), "its extractor has no name")


def _check_facts(bank: MemoryBank) -> None:
    sizes = (*bank.placement.image_hw, *bank.placement.input_hw, *bank.placement.grid_hw)
    _require(all(_is_whole(edge, 1) for edge in sizes), "its sizes are none")
    _require(math.prod(bank.placement.image_hw) <= _MOST_PX, "its images are too large")
    cells = zip(bank.placement.grid_hw, bank.placement.input_hw, strict=True)
    _require(all(n_cells <= edge for n_cells, edge in cells), "its grid is finer than its images")
    digests = bank.image_digests
    _require(all(isinstance(each, str) for each in digests), "it names no images")
    _require(list(digests) == sorted({*digests}), "its images are in no order")
    _require(all(isinstance(part, str) and part for part in bank.part_ids), "its parts have no names")
    _require(isinstance(bank.extractor_id, str) and isinstance(bank.precision, str), "its extractor has no name")
    _require(_is_whole(bank.n_embeddings, len(bank.vectors)), "it has more vectors than rows were seen")
    _require(_is_number(bank.mm_per_px, MIN_MM_PER_PX, MAX_MM_PER_PX), "its scale is none")
    _require(bank.alignment is None or _is_number(bank.alignment), "its alignment is none")
    _require(bank.aligned in (None, True, False), "nobody knows whether it is aligned")
    _check_shape(bank.shape)


def check_options_usable(options: FitOptions) -> None:
    """Raise ValueError if no fit can have been asked for these options."""
    rate = options.coreset_rate
    _require(_is_number(rate, 0, 1) and rate > 0, "its coreset rate is none")
    _require(_is_whole(options.seed, 0) and _is_whole(options.k, 1), "its k or its seed is none")
    _require(options.first_mode in SCORE_MODES and options.aligned in get_args(Aligned), "its options are unknown")
    _check_rule(options.rule)


def _check_rule(rule: ScoreRule) -> None:
    _require(rule.mode in SCORE_MODES, "its score mode is unknown")
    _require(_is_number(rule.percentile, 0, 100) and rule.percentile > 0, "its percentile is none")
    _require(_is_number(rule.blur_sigma, 0) and _is_number(rule.area_mm2_thr, 0), "its blur or its area is none")


def _check_shape(shape: Mapping[str, Any] | None) -> None:
    try:
        _ = None if shape is None else shape_from_fields(shape)
    except InspectionError as error:
        raise ValueError("its shape is none") from error


def _check_width(bank: MemoryBank) -> None:
    """Raise ValueError if the columns of the vectors cannot have come from the extractor that is named."""
    whitening, width = bank.whitening, bank.vectors.shape[1]
    if whitening is None:
        _require(not bank.extractor_id.startswith("filter-bank/"), "its extractor's rows are whitened")
        return
    (n_columns,) = _array(whitening.mean, "whitening_mean", np.float32, (None,), is_finite=True)
    _array(whitening.components, "whitening_components", np.float32, (n_columns, width - 1), is_finite=True)
    _require(_is_number(whitening.lift, 0) and whitening.lift > 0, "its whitening has no lift")
    if bank.extractor_id.startswith("filter-bank/"):
        _require(n_columns == _FILTER_BANK_COLUMNS, "its rows are not as wide as its extractor makes them")


def _check_local(bank: MemoryBank, local: LocalBank) -> None:
    n_learned, n, n_columns = int(bank.mask_cells.sum()), len(bank.image_digests), len(local.step)
    n_parts = bank.n_parts
    _require(local.rows.dtype in (np.int8, np.int16), "local_rows are none")
    _array(local.rows, "local_rows", local.rows.dtype.type, (n_learned, n, n_columns))
    _array(local.step, "local_step", np.float32, (n_columns,), is_finite=True)
    _array(local.centre, "local_centre", np.float32, (bank.vectors.shape[1],), is_finite=True)
    _array(local.basis, "local_basis", np.float32, (bank.vectors.shape[1], n_columns), is_finite=True)
    _array(local.spread, "local_spread", np.float32, (n_learned, n, 2))
    _array(local.spread_part, "local_spread_part", np.int32, (n_learned, n))
    _array(local.plain, "local_plain", np.float32, (n, n_learned), is_finite=True)
    _array(local.chosen, "local_chosen", np.int32, (n, n_learned))
    _require(bool(0 <= local.chosen.min() <= local.chosen.max() < len(bank.vectors)), "local_chosen are no vectors")
    _array(local.medians, "local_medians", np.float64, (1 + n_parts,), is_finite=True)
    _array(local.scores, "local_scores", np.float32, (n, n_learned), is_finite=True)
    _require(bool(0 <= local.scores.min() <= local.scores.max() <= _LARGEST_DISTANCE), "local_scores are none")
    _require(_is_number(local.slack, 0), "local_slack is none")
    numbers = {part: number for number, part in enumerate(sorted({*bank.part_ids}))}
    parts = np.asarray([numbers[part] for part in bank.part_ids])
    _array(local.parts, "local_parts", np.int32, (n,))
    _require(bool((local.parts == parts).all()), "local_parts are not its parts")
    _require(not np.isnan(local.spread).any() and bool((local.spread >= 0).all()), "local_spread are no distances")


def _array(
    array: NDArray[Any], name: str, dtype: type[np.generic], shape: tuple[int | None, ...], *, is_finite: bool = False
) -> tuple[int, ...]:
    """Return an array's shape; raises ValueError if it is not of this dtype and shape. None stands for any, from 1."""
    fits = array.ndim == len(shape) and all(
        size >= 1 if wanted is None else size == wanted for size, wanted in zip(array.shape, shape, strict=True)
    )
    _require(array.dtype == dtype and fits, f"{name} is {array.dtype} {array.shape}")
    _require(not is_finite or bool(np.isfinite(array).all()), f"{name} is not finite")
    return array.shape


def _is_number(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    is_one = isinstance(value, int | float) and not isinstance(value, bool)
    return is_one and math.isfinite(value) and low <= value <= high  # type: ignore[arg-type, operator]


def _is_whole(value: object, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < 2**53


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _require(condition: bool, why_not: str) -> None:
    if not condition:
        raise ValueError(f"not usable: {why_not}")
