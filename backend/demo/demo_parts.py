"""The parts that a demo shows: rendered ones, or real images from a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.demo.part_defects import DefectKind
from backend.demo.samples import SIZE_PX, machined_ring, render_defective, render_good
from backend.imaging.image_codec import SUFFIX_BY_FORMAT, decode_image
from backend.roi_mask import Annulus, shape_mask

_DEFECTS: Sequence[DefectKind] = "pit", "scratch", "dent", "missing_hole", "chipped_edge", "rust", "pit", "scratch"
_FIRST_DEFECT = 1000
_SEEDS_A_SET = 10_000  # No two sets have a part in common.
_MAX_FIT, _MAX_TEST = 50, 24
_MAX_PIXELS = 40_000_000
_SUFFIXES = frozenset(SUFFIX_BY_FORMAT.values()) | {".jpeg", ".tiff"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """One image of the demo.

    Attributes:
        name: What table and page call it.
        image_bgr: [H, W, 3] uint8.
        is_defective: The truth.
        inspected_mask: [H, W] bool, the area that counts; None for the whole image.
        defect_mask: [H, W] bool, where the defect is; None on a good part, and when nobody knows.
    """

    name: str
    image_bgr: NDArray[np.uint8]
    is_defective: bool
    inspected_mask: NDArray[np.bool_] | None = None
    defect_mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class PartSet:
    """What a demo shows: it learns ``fit``, which are good parts, and inspects ``good`` and ``defective``, unseen ones.

    Attributes:
        title: What the parts are, for the page.
        ring: The area to inspect, or None for the whole image.
        remark: What was left out, or empty.
    """

    title: str
    mm_per_px: float
    ring: Annulus | None = None
    fit: Sequence[Part]
    good: Sequence[Part]
    defective: Sequence[Part]
    remark: str = ""


def rendered_parts(n_good: int, mm_per_px: float, *, seed: int = 0) -> PartSet:
    """Return rendered parts: ``n_good`` good ones, three quarters of them to learn from, and eight defective ones.

    Args:
        n_good: 8 … 1000.
        mm_per_px: What a pixel is on the part.
        seed: Another seed gives other parts, and the same kinds of defects at other places.

    Raises:
        ValueError: If ``n_good`` or the seed is out of range, or a defect cannot be drawn at this scale.
    """
    if not 8 <= n_good <= _FIRST_DEFECT:
        raise ValueError(f"--n-good is {n_good}; at least 8 good parts are needed, 30 are better, 1000 are the most.")
    if seed < 0:
        raise ValueError(f"--seed is {seed}; it must not be negative.")
    first = seed * _SEEDS_A_SET
    n_fit = round(0.75 * n_good)
    ring = machined_ring()
    inside = shape_mask(ring, (SIZE_PX, SIZE_PX))
    good, defective = [], []
    for number in range(n_good):
        sample = render_good(first + number, mm_per_px=mm_per_px)
        name = f"good part {number + 1}"
        good.append(Part(name=name, image_bgr=sample.image_bgr, is_defective=False, inspected_mask=inside))
    for part_seed, kind in enumerate(_DEFECTS, start=first + _FIRST_DEFECT):
        sample = render_defective(part_seed, kind, mm_per_px=mm_per_px)
        defective.append(
            Part(
                name=f"{kind.replace('_', ' ')}, {sample.defect_size_mm:.1f} mm",
                image_bgr=sample.image_bgr,
                is_defective=True,
                inspected_mask=inside,
                defect_mask=sample.defect_mask,
            )
        )
    return PartSet(
        title="Rendered grey-iron flanges",
        mm_per_px=mm_per_px,
        ring=ring,
        fit=good[:n_fit],
        good=good[n_fit:],
        defective=defective,
    )


def folder_parts(folder: Path, mm_per_px: float) -> PartSet:
    """Return the images of a folder, thinned out evenly where there are many.

    Raises:
        ValueError: If the folder has not the expected layout.
        InspectionError: If a file is not an image that the service takes.
    """
    kinds = sorted(path for path in (folder / "test").glob("*") if path.is_dir() and path.name != "good")
    places = (
        ("train/good", [folder / "train" / "good"], _MAX_FIT),
        ("test/good", [folder / "test" / "good"], _MAX_TEST),
        ("test/<defect>", kinds, _MAX_TEST),
    )
    chosen, shares = [], []
    for place, folders, most in places:
        found = [path for one in folders for path in sorted(one.glob("*")) if path.suffix.lower() in _SUFFIXES]
        if not found:
            raise ValueError(
                f"There are no images in {folder / place}; "
                "expected are train/good, test/good and test/<defect>, each with images."
            )
        chosen.append(evenly(found, most))
        shares.append(f"{len(chosen[-1])} of {len(found)}")
    pixels = {path: _pixels(path) for paths in chosen for path in paths}
    image_hw = pixels[chosen[0][0]].shape[:2]
    remark = f"Uses {shares[0]} images to learn from, {shares[1]} good and {shares[2]} defective ones to test, "
    remark += "evenly spaced."
    n_resized = sum(image.shape[:2] != image_hw for image in pixels.values())
    if n_resized:
        remark += f" {n_resized} of other sizes were brought to the {image_hw[1]} × {image_hw[0]} px of the first."
    fit, good, defective = ([_part(path, pixels[path], folder, image_hw) for path in paths] for paths in chosen)
    return PartSet(
        title=f"Images from {folder.resolve().name}",
        mm_per_px=mm_per_px,
        fit=fit,
        good=good,
        defective=defective,
        remark=remark,
    )


def evenly(paths: Sequence[Path], n: int) -> list[Path]:
    """Return at most ``n`` of the paths, evenly spaced, the first one among them."""
    n = min(n, len(paths))
    return [paths[index * len(paths) // n] for index in range(n)]


def _part(path: Path, image_bgr: NDArray[np.uint8], folder: Path, image_hw: tuple[int, int]) -> Part:
    kind = path.parent.name
    mask_path = folder / "ground_truth" / kind / f"{path.stem}_mask.png"
    mask = (_pixels(mask_path)[:, :, 0] > 127).astype(np.uint8) if mask_path.is_file() else None
    return Part(
        name=f"{kind}/{path.name}",
        image_bgr=_resized(image_bgr, image_hw),
        is_defective=kind != "good",
        defect_mask=None if mask is None else _resized(mask, image_hw) > 0,
    )


def _pixels(path: Path) -> NDArray[np.uint8]:
    return decode_image(path.read_bytes(), max_pixels=_MAX_PIXELS, name=path.name)


def _resized(pixels: NDArray[np.uint8], image_hw: tuple[int, int]) -> NDArray[np.uint8]:
    return cv2.resize(pixels, image_hw[::-1], interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)
