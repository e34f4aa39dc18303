from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from backend.demo.samples import machined_ring, render_good
from backend.imaging.position_map import position_map, position_placement
from backend.memory_bank.near_identical import distinct_parts, near_identical_groups
from backend.roi_mask import shape_mask
from tests.testkit.fakes import good_image, plate, unaligned_image

Image = NDArray[np.uint8]


def groups_of(
    images: Sequence[Image], part_ids: dict[str, str] | None = None, mask: NDArray[np.bool_] | None = None
) -> tuple[tuple[str, ...], ...]:
    """Return the groups of images that are called 000, 001, …"""
    maps = {f"{n:03}": position_map(image) for n, image in enumerate(images)}
    placement = position_placement(images[0].shape[:2])
    mask = np.ones(images[0].shape[:2], np.bool_) if mask is None else mask
    cells = placement.cell_coverage(mask).reshape(-1) > 0
    return near_identical_groups(maps, {digest: digest for digest in maps} | (part_ids or {}), cells, placement)


def frame(
    image: Image,
    seed: int,
    *,
    noise: float = 2.0,
    shift: float = 0.0,
    exposure: float = 0.0,
    blur: float = 0.0,
    jpeg: bool = False,
) -> Image:
    """Return another photograph of what an image shows."""
    rng = np.random.default_rng([seed, 77])
    dx, dy = rng.uniform(-shift, shift, 2)
    moved = cv2.warpAffine(
        image.astype(np.float32),
        np.array([[1, 0, dx], [0, 1, dy]]),
        image.shape[1::-1],
        borderMode=cv2.BORDER_REPLICATE,
    )
    if blur:
        moved = cv2.GaussianBlur(moved, (0, 0), blur)
    seen = moved * (1 + rng.uniform(-exposure, exposure)) + rng.normal(0, noise, image.shape)
    found = np.clip(np.rint(seen), 0, 255).astype(np.uint8)
    if jpeg:
        found = cv2.imdecode(cv2.imencode(".jpg", found, [1, int(rng.integers(60, 96))])[1], cv2.IMREAD_COLOR)
    return found


def brushed(seed: int, strength: float = 4.0) -> Image:
    """Return a plain brushed plate: nothing but its own grain, and the camera's noise."""
    rng = np.random.default_rng([seed, 5])
    grain = cv2.GaussianBlur(rng.standard_normal((200, 200)), (0, 0), sigmaX=9, sigmaY=0.7)
    grey = 130 + strength * grain / grain.std() + rng.normal(0, 1.5, (200, 200))
    return np.repeat(np.clip(np.rint(grey), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def drawn(seed: int, *, shift: float = 0.7, turn: float = 0.3) -> Image:
    """Return a part without any surface of its own: the same drawing each time, placed a little otherwise."""
    rng = np.random.default_rng([seed, 6])
    sheet = np.full((600, 600), 60, np.float32)
    cv2.circle(sheet, (300, 300), 250, 150.0, -1)
    cv2.circle(sheet, (300, 300), 90, 20.0, -1)
    cv2.circle(sheet, (300, 130), 30, 25.0, -1)
    place = cv2.getRotationMatrix2D((299.5, 299.5), rng.uniform(-turn, turn), 1.0)
    place[:, 2] += 2 * rng.uniform(-shift, shift, 2)
    sheet = cv2.warpAffine(cv2.GaussianBlur(sheet, (0, 0), 2), place, (600, 600), borderMode=cv2.BORDER_REPLICATE)
    grey = cv2.resize(sheet, (300, 300), interpolation=cv2.INTER_AREA) + rng.normal(0, 1.5, (300, 300))
    return np.repeat(np.clip(np.rint(grey), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


PARTS = [render_good(seed).image_bgr for seed in range(10)]


@pytest.mark.parametrize(
    "how",
    [
        {"noise": 1},
        {"noise": 5},
        {"noise": 1, "exposure": 0.1},
        {"noise": 1, "jpeg": True},
        {"noise": 1, "blur": 0.7},
        {"noise": 2, "shift": 1.0},
        {"noise": 2, "shift": 1.0, "exposure": 0.05, "jpeg": True},
    ],
    ids=lambda how: " ".join(how),
)
@pytest.mark.parametrize("among_others", [False, True])
def test_photographs_of_one_part_are_one_group(how: dict[str, float], among_others: bool) -> None:
    frames = [frame(PARTS[0], seed, **how) for seed in range(8)]  # type: ignore[arg-type]
    assert groups_of(frames + PARTS[1:] * among_others) == (tuple(f"{n:03}" for n in range(8)),)


@pytest.mark.parametrize(
    "images",
    [
        PARTS,
        [cv2.resize(part, (96, 96), interpolation=cv2.INTER_AREA) for part in PARTS],
        [plate(seed) for seed in range(20)],
        [good_image(seed) for seed in range(20)],
        [unaligned_image(seed) for seed in range(20)],
        [brushed(seed) for seed in range(20)],
        [brushed(seed, 1.5) for seed in range(20)],
        [brushed(seed, 0.0) for seed in range(20)],
        [np.full((64, 64, 3), level, np.uint8) for level in range(100, 110)],
        [drawn(seed) for seed in range(20)],
    ],
    ids=["flanges", "small", "plates", "waves", "spots", "brushed", "faint", "noise alone", "empty", "drawn"],
)
def test_parts_that_are_alike_are_not_one_part(images: Sequence[Image]) -> None:
    assert groups_of(images) == ()


def test_frames_of_a_plain_plate_share_its_grain() -> None:
    assert groups_of([frame(brushed(0), seed) for seed in range(6)]) == (tuple(f"{n:03}" for n in range(6)),)


def test_other_encodings_and_the_image_itself_are_one_part() -> None:
    jpegs = [cv2.imdecode(cv2.imencode(".jpg", PARTS[0], [1, q])[1], cv2.IMREAD_COLOR) for q in (60, 80, 95)]
    assert groups_of([PARTS[0], *jpegs, PARTS[1]]) == (("000", "001", "002", "003"),)


def test_the_order_of_the_images_does_not_matter() -> None:
    images = [*PARTS[:6], *(frame(PARTS[n], seed, shift=0.5) for n in range(3) for seed in range(3))]
    order = np.random.default_rng(3).permutation(len(images))
    found = groups_of([images[n] for n in order])
    renamed = {tuple(sorted(f"{order[int(name)]:03}" for name in group)) for group in found}
    assert renamed == set(groups_of(images))
    assert len(found) == 3


def test_a_chain_of_likenesses_does_not_join_what_is_different() -> None:
    ends = PARTS[0].astype(np.float32), PARTS[1].astype(np.float32)
    chain = [np.rint((1 - w) * ends[0] + w * ends[1]).astype(np.uint8) for w in np.linspace(0, 1, 13)]
    assert all(groups_of(pair) for pair in pairwise(chain))
    found = groups_of(chain)
    assert len(found) > 2
    assert not any({"000", "012"} <= set(group) for group in found)


def test_what_the_client_says_of_parts_holds() -> None:
    frames = [frame(PARTS[0], seed) for seed in range(4)]
    all_different = {f"{n:03}": f"part-{n}" for n in range(4)}
    assert groups_of(frames, all_different) == ()
    assert distinct_parts(all_different, ()) == all_different
    two = {"000": "A", "001": "B"}
    groups = groups_of(frames, two)
    parts = distinct_parts({"002": "002", "003": "003"} | two, groups)
    assert (parts["000"], parts["001"]) == ("A", "B")
    assert {parts["002"], parts["003"]} <= {"A", "B"}


def test_an_image_that_nobody_named_joins_the_part_of_its_likeness() -> None:
    groups = groups_of([PARTS[0], PARTS[1], frame(PARTS[0], 1)], {"000": "A", "001": "A"})
    assert groups == (("000", "002"),)
    assert distinct_parts({"000": "A", "001": "A", "002": "002"}, groups) == dict.fromkeys(("000", "001", "002"), "A")


def test_only_what_lies_in_the_shape_counts() -> None:
    ring = shape_mask(machined_ring(), PARTS[0].shape[:2])
    with_other_bore = [frame(PARTS[0], seed) for seed in range(3)]
    for seed, image in enumerate(with_other_bore):
        image[~ring] = np.random.default_rng(seed).integers(0, 12)
    assert groups_of(with_other_bore, mask=ring) == (("000", "001", "002"),)
    assert groups_of([np.where(ring[..., None], part, PARTS[0]) for part in PARTS], mask=ring) == ()


def test_a_small_window_on_the_same_background_is_looked_at_as_well() -> None:
    window = np.zeros(PARTS[0].shape[:2], np.bool_)
    window[170:230, 40:90] = True
    same_background = [np.where(window[..., None], part, PARTS[0]) for part in PARTS]
    assert groups_of(same_background, mask=window) == ()
    assert groups_of([frame(PARTS[0], seed) for seed in range(3)], mask=window) == (("000", "001", "002"),)


def test_one_image_and_a_shape_between_the_cells_have_no_groups() -> None:
    assert groups_of(PARTS[:1]) == ()
    assert groups_of(PARTS[:2], mask=np.zeros(PARTS[0].shape[:2], np.bool_)) == ()
