"""What a fit is asked for, how far it is, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from backend.memory_bank.alignment import ALIGNED_FROM, MIN_PARTS_ALIGNED, Aligned
from backend.memory_bank.bank import FitOptions, MemoryBank
from backend.memory_bank.coreset import Progress
from backend.roi_mask import Shape
from backend.scoring.leave_one_out import LeaveOneOutScores
from backend.services.learned_images import LearnedImages

Mode = Literal["add", "replace"]

FEW_PARTS = 20

_IMAGES_PER_CORESET_STEP = 4
"""Picking the coreset counts as one image for every so many: about the time it takes with DINOv2 on a processor."""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """One uploaded image: its name, its bytes, and the physical part that it shows, if the client said."""

    name: str
    data: bytes = field(repr=False)
    part_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """What to learn.

    Attributes:
        uploads: Images; at least one, unless ``use_dataset``.
        mm_per_px: Millimetres per pixel of the images.
        shape: What counts, in pixels of the first upload; None keeps what the ROI has learned with.
        mode: ``add`` to what was learned, or ``replace`` it.
        use_dataset: Learn exactly the ``ok`` images of the data set, and the uploads.
        options: Everything else that shapes the memory, where the fit does not add to one.
        coreset_rate: In place of that of the options; None for what holds.
        reason: Why, in the words of whoever fits; kept with the version.
        aligned: As in ``FitOptions``; None keeps what the ROI was fitted with, which for a new one ``options`` say.
    """

    uploads: Sequence[Upload]
    mm_per_px: float
    shape: Shape | None
    mode: Mode
    use_dataset: bool
    options: FitOptions
    coreset_rate: float | None = None
    aligned: Aligned | None = None
    reason: str | None = None


class FitProgress:
    """One count over all stages of a fit: a step for each image, and some for the coreset.

    Args:
        report: Called with (steps done, steps in all); None for nobody.
        n_images: Images of the fit, uploaded or stored.
    """

    def __init__(self, report: Progress | None, n_images: int) -> None:
        self._report = report or (lambda _done, _total: None)
        self._n_images = n_images
        self._n_done = 0
        self._total = n_images + math.ceil(n_images / _IMAGES_PER_CORESET_STEP)

    def image_done(self) -> None:
        """Count one more image."""
        self._n_done = min(self._n_done + 1, self._n_images)
        self._report(self._n_done, self._total)

    def picks(self, done: int, n_picks: int) -> None:
        """Count the coreset's picks."""
        self._report(self._n_images + (self._total - self._n_images) * done // n_picks, self._total)


@dataclass(frozen=True, kw_only=True)
class FitReport:
    """What was learned.

    Attributes:
        n_new: Images that the memory did not know before.
        n_duplicates: Uploads that repeat an image.
        scores: Leave-one-image-out scores of all images.
        learned: What is doubtful about the images.
        calibration: What became of the ROI's calibration: ``none`` was there, it was ``kept`` (the memory is the same),
            ``renewed``, or is ``stale``.
        threshold: The threshold now in force, if any.
    """

    bank: MemoryBank
    n_new: int
    n_duplicates: int
    scores: LeaveOneOutScores
    learned: LearnedImages
    calibration: Literal["none", "kept", "renewed", "stale"]
    threshold: float | None
    warnings: tuple[str, ...]
    timings_ms: Mapping[str, float]


def fit_warnings(bank: MemoryBank, scores: LeaveOneOutScores, area_mm2_thr: float) -> Iterable[str]:
    """Yield what is weak about a memory: too few parts, images without a score, a doubtful alignment, coarse cells."""
    n = bank.n_parts
    if n >= 2 and bank.scored_beside_own_part:
        yield (
            f"{bank.n_parts_left_out} of {n} different parts could be scored without a near-identical image in the "
            f"memory: a threshold promises next to nothing. Fit at least {FEW_PARTS} different parts, better 50."
        )
    elif n < 2:
        yield (
            "One good part is not enough for a threshold: nothing tells how much good parts differ. "
            f"Fit at least {FEW_PARTS}, better 50."
        )
    elif n < FEW_PARTS:
        yield (
            f"{n} good parts prove little: with 95 % confidence no more than that fewer than "
            f"{100 * (1 - 0.05 ** (1 / n)):.0f} % of good parts are rejected. Fit at least {FEW_PARTS}, better 50."
        )
    unscored = len(bank.image_digests) - len(scores.by_image)
    if n >= 2 and unscored:
        yield f"{unscored} images could not be scored without their own part: raise coreset_rate or fit more parts."
    yield from _alignment_warnings(bank)
    cell_mm = bank.placement.cell_mm(bank.mm_per_px)
    if area_mm2_thr < cell_mm**2 / 4:
        height, width = bank.placement.input_hw
        cell_px = height // bank.placement.grid_hw[0]
        wanted = math.sqrt(height * width) * cell_mm / (2 * math.sqrt(area_mm2_thr)) if area_mm2_thr > 0 else math.inf
        size = 0 if math.isinf(wanted) else math.ceil(wanted / cell_px - 1e-9) * cell_px
        remedy = f"BDI_INPUT_SIZE={size} would" if size else "no input_size can"
        yield (
            f"area_mm2_thr is {area_mm2_thr:g} mm², but one patch cell is {cell_mm:.2f} mm wide: an area below a "
            f"quarter of a cell ({cell_mm**2 / 4:.2f} mm²) is not resolved; {remedy} resolve it."
        )


def _alignment_warnings(bank: MemoryBank) -> Iterable[str]:
    """Yield what is strange about whether a ROI is aligned."""
    if bank.aligned and not bank.is_local:
        yield (
            f"The ROI is taken for aligned, but patches are compared by position only from {MIN_PARTS_ALIGNED} good "
            f"parts on, and it has {bank.n_parts}: until then it is scored as if it were not."
        )
    if bank.options.aligned != "auto" or bank.aligned is None or bank.alignment is None:
        return
    if bank.aligned != (bank.alignment >= ALIGNED_FROM):
        stays, now = ("aligned", "below") if bank.aligned else ("not aligned", "no longer below")
        yield (
            f"The ROI stays {stays}, as its earlier images decided; the alignment of all its images is "
            f"{bank.alignment:.2f} and {now} {ALIGNED_FROM:g}. Fit it with mode=replace to decide anew, or say "
            "aligned=yes or aligned=no."
        )
