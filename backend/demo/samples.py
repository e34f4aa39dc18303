"""Canonical ROI images of machined grey parts, good and defective, rendered from a seed.

One turned cast-iron flange, seen from above by a line camera: a face with concentric turning marks and six bolt holes,
a relief groove, a hub with a keyed bore, on a dark belt. Two good parts differ as two real ones do: a pixel or so of
shift, half a degree of rotation, other turning marks, another grain, a little more or less light. A defect has a size
in millimetres and a mask that says where it is.

The part fills the ROI whatever the scale: its radii are fractions of the half edge of the image, while a defect's size
is absolute. ``render_defective(seed, kind)`` is the very part of ``render_good(seed)``, plus the defect. The same
arguments give the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from backend.demo.machined_part import EDGE, FACE_INNER, HOLE, MARGIN, N_HOLES, MachinedPart, Mask
from backend.demo.part_defects import DEFECT_KINDS, DRAWN_DEFECTS, DefectKind
from backend.roi_mask import Annulus

SIZE_PX = 384


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One rendered ROI image and what is wrong with the part.

    Attributes:
        image_bgr: [H, W, 3] uint8.
        defect_mask: [H, W] bool; True where the defect is, nowhere on a good part.
        defect_size_mm: Length of a scratch, width of a chip along the rim, else diameter of the disc of equal area.
    """

    image_bgr: NDArray[np.uint8] = field(compare=False, repr=False)
    defect_mask: Mask = field(compare=False, repr=False)
    defect_size_mm: float = 0.0


def machined_ring(size_px: int = SIZE_PX) -> Annulus:
    """Return the annulus that covers the machined face, rim and bolt holes included, wherever the part lies."""
    half = size_px / 2
    centre = (size_px - 1) / 2
    return Annulus(cx=centre, cy=centre, r=(EDGE + MARGIN) * half, r_inner=(FACE_INNER - MARGIN) * half)


def drawable_mm(size_px: int, mm_per_px: float) -> tuple[float, float]:
    """Return the smallest and the largest size of a defect, mm: two pixels, and the width of the face."""
    return 2 * mm_per_px, (EDGE - FACE_INNER) * size_px / 2 * mm_per_px


def render_good(seed: int, *, size_px: int = SIZE_PX, mm_per_px: float = 0.2) -> Sample:
    """Return a good part on a square image of edge ``size_px``."""
    part = MachinedPart(seed, size_px, mm_per_px)
    return Sample(image_bgr=part.expose(part.shade()), defect_mask=np.zeros((size_px, size_px), np.bool_))


def render_defective(
    seed: int, kind: DefectKind, *, size_px: int = SIZE_PX, mm_per_px: float = 0.2, scale: float = 1.0
) -> Sample:
    """Return the part of ``render_good(seed)`` with one defect of a size that is usual for its kind.

    Args:
        seed: Draws the part, the place of the defect and its size.
        kind: What is wrong with the part.
        size_px: Edge of the square image.
        mm_per_px: What a pixel is on the part.
        scale: Factor on the usual size; a scratch gets shorter with it, not narrower.

    Raises:
        ValueError: If the size is less than two pixels or does not fit onto the face, at this ``mm_per_px``; or if a
            missing hole is to have another size than the hole.
    """
    if kind == "missing_hole" and scale != 1.0:
        raise ValueError("a missing hole has the size of the hole: its scale is 1")
    part = MachinedPart(seed, size_px, mm_per_px)
    rng = np.random.default_rng([seed, 2 + DEFECT_KINDS.index(kind)])
    if kind == "missing_hole":
        hole = int(rng.integers(N_HOLES))
        scene, mask = part.shade(without_hole=hole), part.hole_mask(hole)
        size_mm = 2 * HOLE * part.half * mm_per_px
    else:
        draw, smallest_mm, largest_mm = DRAWN_DEFECTS[kind]
        size_mm = scale * float(rng.uniform(smallest_mm, largest_mm))
        low, high = drawable_mm(size_px, mm_per_px)
        if not low <= size_mm <= high:
            raise ValueError(
                f"a {kind} of {size_mm:.1f} mm cannot be drawn at {mm_per_px:g} mm per pixel: "
                f"there a defect has between {low:g} and {high:.4g} mm"
            )
        scene, mask = draw(part, part.shade(), size_mm / mm_per_px, rng)
    return Sample(image_bgr=part.expose(scene), defect_mask=mask, defect_size_mm=size_mm)
