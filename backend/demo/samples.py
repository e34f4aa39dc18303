"""Canonical ROI images of machined grey parts, good and defective, rendered from a seed.

One turned cast-iron flange, seen from above by a line camera: a face with concentric turning marks and six bolt holes,
a relief groove, a hub with a keyed bore, on a dark belt. Two good parts differ as two real ones do: a pixel or so of
shift, half a degree of rotation, other turning marks, another grain, a little more or less light. A defect has a size
in millimetres and a mask that says where it is.

The part fills the ROI whatever the scale: its radii are fractions of the half edge of the image, while a defect's size
is absolute. ``render_defective(seed, kind)`` is the very part of ``render_good(seed)``, plus the defect.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from backend.demo.machined_part import EDGE, FACE_INNER, HOLE, MARGIN, N_HOLES, MachinedPart, Mask
from backend.demo.part_defects import DEFECT_KINDS, DRAW, USUAL_SIZE_MM, DefectKind
from backend.roi_mask import Annulus

__all__ = ["DEFECT_KINDS", "DefectKind", "Sample", "machined_ring", "render_defective", "render_good"]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One rendered ROI image and what is wrong with the part.

    Attributes:
        image_bgr: [H, W, 3] uint8.
        defect_mask: [H, W] bool; True where the defect is, nowhere on a good part.
        defect_kind: One of ``DEFECT_KINDS``, or None on a good part.
        defect_size_mm: Length of a scratch, width of a chip along the rim, else diameter of the disc of equal area.
        seed: What it was rendered from.
        mm_per_px: Millimetres per pixel.
    """

    image_bgr: NDArray[np.uint8] = field(compare=False, repr=False)
    defect_mask: Mask = field(compare=False, repr=False)
    defect_kind: DefectKind | None
    defect_size_mm: float | None
    seed: int
    mm_per_px: float

    @property
    def defect_area_mm2(self) -> float:
        """Area of the defect on the part, mm²; 0 on a good part."""
        return float(np.count_nonzero(self.defect_mask)) * self.mm_per_px**2


def machined_ring(size_px: int = 384) -> Annulus:
    """Return the annulus that covers the machined face, rim and bolt holes included, wherever the part lies."""
    half = size_px / 2
    centre = (size_px - 1) / 2
    return Annulus(cx=centre, cy=centre, r=(EDGE + MARGIN) * half, r_inner=(FACE_INNER - MARGIN) * half)


def render_good(seed: int, *, size_px: int = 384, mm_per_px: float = 0.2) -> Sample:
    """Return a good part.

    Args:
        seed: The same seed gives the same bytes.
        size_px: Edge of the square image, px; at least 64.
        mm_per_px: Millimetres per pixel; positive.

    Raises:
        ValueError: If an argument is out of range.
    """
    part = MachinedPart(seed, size_px, mm_per_px)
    return Sample(
        image_bgr=part.expose(part.shade()),
        defect_mask=np.zeros((size_px, size_px), np.bool_),
        defect_kind=None,
        defect_size_mm=None,
        seed=seed,
        mm_per_px=mm_per_px,
    )


def render_defective(
    seed: int, kind: str, *, size_px: int = 384, mm_per_px: float = 0.2, size_mm: float | None = None
) -> Sample:
    """Return the part of ``render_good(seed)`` with one defect.

    Args:
        seed: The same seed and kind give the same bytes.
        kind: One of ``DEFECT_KINDS``.
        size_px: Edge of the square image, px; at least 64.
        mm_per_px: Millimetres per pixel; positive.
        size_mm: Size of the defect (see ``Sample.defect_size_mm``); drawn from what is usual for its kind when None.

    Raises:
        ValueError: If an argument is out of range, or a size is asked of a missing hole, which has that of the hole.
    """
    named = next((known for known in DEFECT_KINDS if known == kind), None)
    if named is None:
        raise ValueError(f"kind must be one of {', '.join(DEFECT_KINDS)}, got {kind!r}")
    part = MachinedPart(seed, size_px, mm_per_px)
    rng = np.random.default_rng([seed, 2 + DEFECT_KINDS.index(named)])
    if named == "missing_hole":
        if size_mm is not None:
            raise ValueError("size_mm must be left out for missing_hole: the bolt holes have one size")
        hole = int(rng.integers(N_HOLES))
        scene, mask = part.shade(without_hole=hole), part.hole_mask(hole)
        size_mm = 2 * HOLE * part.half * mm_per_px
    else:
        size_mm = float(rng.uniform(*USUAL_SIZE_MM[named])) if size_mm is None else size_mm
        size_in_px = size_mm / mm_per_px
        widest = (EDGE - FACE_INNER) * part.half
        if not 2 <= size_in_px <= widest:
            limits = f"{2 * mm_per_px:g} and {widest * mm_per_px:.4g}"
            raise ValueError(f"size_mm must be between {limits} in this image, got {size_mm:g}")
        scene, mask = DRAW[named](part, part.shade(), size_in_px, rng)
    return Sample(
        image_bgr=part.expose(scene),
        defect_mask=mask,
        defect_kind=named,
        defect_size_mm=size_mm,
        seed=seed,
        mm_per_px=mm_per_px,
    )
