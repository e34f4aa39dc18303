"""The parts that a demo shows: rendered ones, or real images from a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.demo.samples import Sample, machined_ring, render_defective, render_good
from backend.imaging.image_codec import decode_image, encode_png
from backend.roi_mask import Annulus

_DEFECTS = ("pit", "scratch", "dent", "missing_hole", "chipped_edge", "rust", "pit", "scratch")
_MAX_FIT, _MAX_TEST = 50, 24
_MAX_PIXELS = 40_000_000
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


class DemoError(Exception):
    """The demo cannot go on; the text says what to do about it."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One image of the demo.

    Attributes:
        name: What table and page call it.
        data: The image file's bytes, as they are sent.
        image_bgr: The same as pixels, [H, W, 3] uint8.
        is_defective: The truth.
        defect_mask: [H, W] bool, or None when nobody knows where the defect is.
        was_resized: True when the file had another size than the first image learned.
    """

    name: str
    data: bytes = field(repr=False)
    image_bgr: NDArray[np.uint8] = field(compare=False, repr=False)
    is_defective: bool
    defect_mask: NDArray[np.bool_] | None = field(default=None, compare=False, repr=False)
    was_resized: bool = False


@dataclass(frozen=True, kw_only=True)
class PartSet:
    """What a demo shows.

    Attributes:
        title: What the parts are, for the page.
        mm_per_px: Millimetres per pixel of every image.
        ring: The area to inspect, or None for the whole image.
        fit: Good parts to learn from.
        good: Good parts that the memory never sees.
        defective: Defective parts.
        remark: What was left out, or empty.
    """

    title: str
    mm_per_px: float
    ring: Annulus | None
    fit: tuple[Part, ...]
    good: tuple[Part, ...]
    defective: tuple[Part, ...]
    remark: str = ""


def rendered_parts(n_good: int, mm_per_px: float) -> PartSet:
    """Return rendered parts: ``n_good`` good ones, three quarters of them to learn from, and eight defective ones.

    Raises:
        DemoError: If ``n_good`` is smaller than 8.
    """
    if n_good < 8:
        raise DemoError(f"--n-good is {n_good}; at least 8 good parts are needed, 30 are better.")
    n_fit = round(0.75 * n_good)
    good = [_rendered(f"good part {seed + 1}", render_good(seed, mm_per_px=mm_per_px)) for seed in range(n_good)]
    defective = []
    for seed, defect in enumerate(_DEFECTS, start=1000):
        sample = render_defective(seed, defect, mm_per_px=mm_per_px)
        kind = str(sample.defect_kind).replace("_", " ")
        defective.append(_rendered(f"{kind}, {sample.defect_size_mm:.1f} mm", sample))
    return PartSet(
        title="Rendered grey-iron flanges",
        mm_per_px=mm_per_px,
        ring=machined_ring(),
        fit=tuple(good[:n_fit]),
        good=tuple(good[n_fit:]),
        defective=tuple(defective),
    )


def _rendered(name: str, sample: Sample) -> Part:
    is_defective = sample.defect_kind is not None
    return Part(
        name=name,
        data=encode_png(sample.image_bgr),
        image_bgr=sample.image_bgr,
        is_defective=is_defective,
        defect_mask=sample.defect_mask if is_defective else None,
    )


def folder_parts(folder: Path, mm_per_px: float) -> PartSet:
    """Return the images of a folder, thinned out evenly where there are many.

    Raises:
        DemoError: If the folder has not the expected layout.
    """
    layout = "expected are train/good, test/good and test/<defect>, each with images"
    train, good = _images(folder / "train" / "good"), _images(folder / "test" / "good")
    kinds = [kind for kind in sorted((folder / "test").glob("*")) if kind.is_dir() and kind.name != "good"]
    bad = [path for kind in kinds for path in _images(kind)]
    for found, place in ((train, "train/good"), (good, "test/good"), (bad, "test/<defect>")):
        if not found:
            raise DemoError(f"There are no images in {folder / place}; {layout}.")
    chosen = evenly(train, _MAX_FIT), evenly(good, _MAX_TEST), evenly(bad, _MAX_TEST)
    image_hw = _pixels(chosen[0][0]).shape[:2]
    fit, unseen, defective = (tuple(_read(path, folder, image_hw) for path in paths) for paths in chosen)
    n_resized = sum(part.was_resized for part in (*fit, *unseen, *defective))
    remark = (
        f"Uses {len(fit)} of {len(train)} images to learn from, {len(unseen)} of {len(good)} good and "
        f"{len(defective)} of {len(bad)} defective ones to test, evenly spaced."
    )
    if n_resized:
        remark += f" {n_resized} of other sizes were brought to the {image_hw[1]} × {image_hw[0]} px of the first."
    return PartSet(
        title=f"Images from {folder.resolve().name}",
        mm_per_px=mm_per_px,
        ring=None,
        fit=fit,
        good=unseen,
        defective=defective,
        remark=remark,
    )


def evenly(paths: Sequence[Path], n: int) -> list[Path]:
    """Return at most ``n`` of the paths, evenly spaced, the first one among them."""
    if len(paths) <= n:
        return list(paths)
    return [paths[index * len(paths) // n] for index in range(n)]


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in _SUFFIXES)


def _pixels(path: Path) -> NDArray[np.uint8]:
    return decode_image(path.read_bytes(), max_pixels=_MAX_PIXELS, name=path.name)


def _read(path: Path, folder: Path, image_hw: tuple[int, int]) -> Part:
    kind = path.parent.name
    data, image_bgr = path.read_bytes(), _pixels(path)
    mask_path = folder / "ground_truth" / kind / f"{path.stem}_mask.png"
    mask = _pixels(mask_path)[:, :, 0] > 127 if kind != "good" and mask_path.is_file() else None
    was_resized = image_bgr.shape[:2] != image_hw
    if was_resized:
        image_bgr = _resized(image_bgr, image_hw)
        data = encode_png(image_bgr)
    if mask is not None and mask.shape != image_hw:
        mask = _resized(mask.astype(np.uint8), image_hw) > 0
    return Part(
        name=f"{kind}/{path.name}",
        data=data,
        image_bgr=image_bgr,
        is_defective=kind != "good",
        defect_mask=mask,
        was_resized=was_resized,
    )


def _resized(pixels: NDArray[np.uint8], image_hw: tuple[int, int]) -> NDArray[np.uint8]:
    return cv2.resize(pixels, image_hw[::-1], interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)
