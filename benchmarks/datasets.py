"""Folders of images in the layout of the public anomaly-detection benchmarks.

train/good/*                        good parts to learn from
test/good/*                         good parts that the memory never sees
test/<defect>/*                     defective parts
ground_truth/<defect>/*_mask.png    where the defect is (not 0), if known; named after the image
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from backend.imaging.image_codec import SUFFIX_BY_FORMAT, decode_image, encode_png

_SUFFIXES = frozenset(SUFFIX_BY_FORMAT.values()) | {".jpeg", ".tiff"}
_MAX_PIXELS = 40_000_000
_LARGEST_STRETCH = 1.1
_LAYOUT = "expected are train/good, test/good and test/<defect>, each with images"


class DatasetError(Exception):
    """A folder cannot be measured on; the text says what to do about it."""


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """An image file and what is known about its part.

    Attributes:
        path: The file.
        kind: ``good``, or the name of the defect.
        mask_path: Where the defect is; None for a good part, and when nobody knows.
    """

    path: Path
    kind: str
    mask_path: Path | None = None

    @property
    def is_defective(self) -> bool:
        """The truth."""
        return self.kind != "good"

    @property
    def name(self) -> str:
        """What tables and pages call it."""
        return f"{self.kind}/{self.path.name}"


@dataclass(frozen=True, kw_only=True)
class Split:
    """What one run learns from and what it is tested on; no image is in both."""

    fit: tuple[LabelledImage, ...]
    test: tuple[LabelledImage, ...]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A folder of images.

    Attributes:
        name: Of the folder.
        train: Good parts to learn from.
        good: Good parts to test on.
        defective: Defective parts to test on.
        image_hw: The size every image is brought to, px: the median over all, which is the size itself where all agree.
        n_resized: Images of another size. A camera cuts a canonical ROI to one size; a public set may not.
    """

    name: str
    train: tuple[LabelledImage, ...]
    good: tuple[LabelledImage, ...]
    defective: tuple[LabelledImage, ...]
    image_hw: tuple[int, int]
    n_resized: int

    @property
    def n_masks(self) -> int:
        """Defective images of which the place of the defect is known."""
        return sum(image.mask_path is not None for image in self.defective)

    def draw(self, shots: int, seed: int, *, pooled: bool = False) -> Split:
        """Return a split: so many good parts, drawn without repetition, to learn from.

        Args:
            shots: Images to learn from; at least 2.
            seed: Draws them.
            pooled: Draw from all good parts and test on those that are left, so that every seed is tested on other good
                parts. Otherwise draw from ``train/good`` and test on ``test/good``.

        Raises:
            DatasetError: If there are not enough good parts.
        """
        pool = self.train + self.good if pooled else self.train
        most = len(pool) - 1 if pooled else len(pool)
        if not 2 <= shots <= most:
            where = "train/good and test/good together" if pooled else "train/good"
            raise DatasetError(
                f"--shots is {shots}, but {where} of {self.name} has {len(pool)} images: it must be 2 … {most}."
            )
        picks = set(np.random.default_rng(seed).choice(len(pool), shots, replace=False).tolist())
        left = tuple(image for index, image in enumerate(pool) if index not in picks)
        return Split(
            fit=tuple(pool[index] for index in sorted(picks)),
            test=(left if pooled else self.good) + self.defective,
        )

    def data(self, image: LabelledImage) -> bytes:
        """Return the bytes of an image: the file's own, or a PNG where it had to be brought to ``image_hw``."""
        data = image.path.read_bytes()
        pixels = decode_image(data, max_pixels=_MAX_PIXELS, name=image.name)
        if pixels.shape[:2] == self.image_hw:
            return data
        return encode_png(_resized(pixels, self.image_hw, cv2.INTER_CUBIC))

    def defect_mask(self, image: LabelledImage) -> NDArray[np.bool_] | None:
        """Return where the defect is, [H, W] bool of ``image_hw``: nowhere on a good part; None when nobody knows.

        Raises:
            DatasetError: If the mask and its image differ in size.
        """
        if not image.is_defective:
            return np.zeros(self.image_hw, dtype=np.bool_)
        if image.mask_path is None:
            return None
        mask = decode_image(image.mask_path.read_bytes(), max_pixels=_MAX_PIXELS, name=image.mask_path.name)
        if mask.shape[:2] != _size_hw(image.path):
            raise DatasetError(f"The mask {image.mask_path} and the image {image.path} differ in size.")
        return np.asarray(_resized(mask, self.image_hw, cv2.INTER_NEAREST).max(axis=2) > 0)


def read_dataset(folder: Path) -> Dataset:
    """Return the images of a folder; nothing but file headers is read.

    Raises:
        DatasetError: If the folder has not the expected layout, or its images differ too much in size.
    """
    if not folder.is_dir():
        raise DatasetError(
            f"There is no folder {folder}; {_LAYOUT}. To render one: roi-inspector samples --out {folder}"
        )
    train, good = _images(folder, "train", "good"), _images(folder, "test", "good")
    kinds = sorted(path.name for path in (folder / "test").glob("*") if path.is_dir() and path.name != "good")
    defective = tuple(image for kind in kinds for image in _images(folder, "test", kind))
    for found, place in ((train, "train/good"), (good, "test/good"), (defective, "test/<defect>")):
        if not found:
            inside = [path.name for path in sorted(folder.glob("*")) if (path / "train" / "good").is_dir()]
            hint = f" Did you mean {folder / inside[0]}?" if inside else ""
            raise DatasetError(f"There are no images in {folder / place}; {_LAYOUT}.{hint}")
    sizes = np.array([_size_hw(image.path) for image in (*train, *good, *defective)])
    height, width = (int(edge) for edge in np.median(sizes, axis=0))
    stretch = np.maximum(sizes / (height, width), (height, width) / sizes)
    if stretch.max() > _LARGEST_STRETCH:
        raise DatasetError(
            f"The images in {folder} differ in size by more than {100 * (_LARGEST_STRETCH - 1):.0f} %. "
            "Images of one ROI are cut out in one size."
        )
    return Dataset(
        name=folder.resolve().name,
        train=train,
        good=good,
        defective=defective,
        image_hw=(height, width),
        n_resized=int((sizes != (height, width)).any(axis=1).sum()),
    )


def _images(folder: Path, part: str, kind: str) -> tuple[LabelledImage, ...]:
    paths = sorted(path for path in (folder / part / kind).glob("*") if path.suffix.lower() in _SUFFIXES)
    masks = folder / "ground_truth" / kind
    by_stem = {path.stem: path for path in masks.glob("*") if path.is_file()} if kind != "good" else {}
    images = tuple(LabelledImage(path=path, kind=kind, mask_path=by_stem.get(f"{path.stem}_mask")) for path in paths)
    if by_stem and images and all(image.mask_path is None for image in images):
        raise DatasetError(
            f"No mask in {masks} belongs to an image: "
            f"the mask of {paths[0].name} must be called {paths[0].stem}_mask.png."
        )
    return images


def _size_hw(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as header:
            return header.height, header.width
    except (UnidentifiedImageError, OSError) as error:
        raise DatasetError(f"The file {path} is not an image that can be read.") from error


def _resized(pixels: NDArray[np.uint8], to_hw: tuple[int, int], interpolation: int) -> NDArray[np.uint8]:
    if pixels.shape[:2] == to_hw:
        return pixels
    return cv2.resize(pixels, (to_hw[1], to_hw[0]), interpolation=interpolation).astype(np.uint8, copy=False)
