"""Rendered parts as a data set, in the layout of the public anomaly-detection benchmarks.

train/good/*                        good parts to learn from
test/good/*                         other good parts
test/<kind>/*                       defective parts
ground_truth/<kind>/*_mask.png      where the defect is: 255, elsewhere 0

The same arguments give the same files.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from backend.demo.part_defects import DEFECT_KINDS, DRAWN_DEFECTS, DefectKind
from backend.demo.samples import SIZE_PX, Sample, drawable_mm, render_defective, render_good
from backend.imaging.image_codec import encode_png

Sizes = Literal["usual", "small"]
SCALES: dict[Sizes, float] = {"usual": 1.0, "small": 0.5}
"""Factor on the usual sizes of the defects."""

Progress = Callable[[int, int], None]
"""Called with the number of images that are written, and of all."""

# Seeds of the parts of one set: no part is in two places, and no two sets have one in common.
_SEEDS_A_SET, _FIRST_TEST, _FIRST_DEFECT, _SEEDS_A_KIND = 10_000, 3_000, 6_000, 500
_MOST_GOOD, _MOST_PER_KIND = _FIRST_DEFECT - _FIRST_TEST, _SEEDS_A_KIND


@dataclass(frozen=True, kw_only=True)
class SampleSet:
    """What to render.

    Attributes:
        sizes: ``usual``, or ``small``: half of it. A missing hole is as large as the hole, so ``small`` has none.
        n_good: Good parts in train/good, and as many others in test/good; 2 … 3000.
        per_kind: Defective parts of each kind; 1 … 500.
        seed: Another seed gives other parts; not negative.
        mm_per_px: What a pixel is on the part.
    """

    sizes: Sizes = "usual"
    n_good: int = 100
    per_kind: int = 20
    seed: int = 0
    mm_per_px: float = 0.2

    @property
    def kinds(self) -> tuple[DefectKind, ...]:
        """The kinds of defects in it."""
        return tuple(kind for kind in DEFECT_KINDS if kind in DRAWN_DEFECTS or SCALES[self.sizes] == 1.0)

    @property
    def n_images(self) -> int:
        """Good and defective parts, masks not counted."""
        return 2 * self.n_good + len(self.kinds) * self.per_kind

    def check(self) -> None:
        """Raise ValueError if a number is out of range, or a defect cannot be drawn at this scale."""
        if not 2 <= self.n_good <= _MOST_GOOD:
            raise ValueError(f"--good is {self.n_good}; it must be 2 … {_MOST_GOOD}.")
        if not 1 <= self.per_kind <= _MOST_PER_KIND:
            raise ValueError(f"--per-kind is {self.per_kind}; it must be 1 … {_MOST_PER_KIND}.")
        if self.seed < 0:
            raise ValueError(f"--seed is {self.seed}; it must not be negative.")
        low, high = drawable_mm(SIZE_PX, self.mm_per_px)
        for kind, (_, smallest_mm, largest_mm) in DRAWN_DEFECTS.items():
            smallest_mm, largest_mm = SCALES[self.sizes] * smallest_mm, SCALES[self.sizes] * largest_mm
            if not low <= smallest_mm <= largest_mm <= high:
                raise ValueError(
                    f"--mm-per-px is {self.mm_per_px:g}: there a defect has between {low:g} and {high:.4g} mm, "
                    f"and a {kind} of this set has {smallest_mm:g} to {largest_mm:g} mm."
                )

    def samples(self) -> Iterator[tuple[Path, Path | None, Sample]]:
        """Yield for each part where its image goes, where its mask goes if it is defective, and the part."""
        first = self.seed * _SEEDS_A_SET
        for folder, start in (("train", first), ("test", first + _FIRST_TEST)):
            for number in range(self.n_good):
                sample = render_good(start + number, mm_per_px=self.mm_per_px)
                yield Path(folder, "good", f"{number:03}.png"), None, sample
        for kind in self.kinds:
            start = first + _FIRST_DEFECT + DEFECT_KINDS.index(kind) * _SEEDS_A_KIND
            for number in range(self.per_kind):
                sample = render_defective(start + number, kind, mm_per_px=self.mm_per_px, scale=SCALES[self.sizes])
                mask = Path("ground_truth", kind, f"{number:03}_mask.png")
                yield Path("test", kind, f"{number:03}.png"), mask, sample


def write_samples(wanted: SampleSet, out: Path, *, progress: Progress = lambda *_: None) -> None:
    """Write a data set into a folder that is new or empty.

    Raises:
        ValueError: If the folder holds anything, or ``wanted.check()`` fails; nothing is written then.
        OSError: If the folder cannot be written.
    """
    wanted.check()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not an empty folder: name another one, or remove it first.")
    for done, (image_path, mask_path, sample) in enumerate(wanted.samples(), start=1):
        _write(out / image_path, sample.image_bgr)
        if mask_path is not None:
            _write(out / mask_path, np.where(sample.defect_mask, np.uint8(255), np.uint8(0)))
        progress(done, wanted.n_images)


def run_samples(wanted: SampleSet, out: Path) -> int:
    """Write a data set and print what it holds; return the exit status: 0, or 1 when something failed."""
    try:
        write_samples(wanted, out, progress=_show)
    except KeyboardInterrupt:
        print(f"\nInterrupted: the data set in {out} is not complete.", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(
        f"{out}: {wanted.n_good} good parts to learn from, {wanted.n_good} others, and {wanted.per_kind} with each of "
        f"{', '.join(wanted.kinds)}; {wanted.mm_per_px:g} mm per pixel."
    )
    return 0


def _show(done: int, total: int) -> None:
    """Show in one line of a terminal how far it is."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\rrendering: {done} of {total} images", end=end, file=sys.stderr, flush=True)


def _write(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(pixels))
