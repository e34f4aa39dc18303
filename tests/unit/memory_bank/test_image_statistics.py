"""The statistics that tell an image of a ROI from another one."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from backend.demo.samples import render_good
from backend.imaging.appearance import CHANNELS, appearance_map
from backend.memory_bank.image_ranges import LearnedRanges, Statistic, learn_ranges
from backend.memory_bank.image_statistics import FINEST_PX, NAMES

EVERYWHERE = np.ones(27 * 27, bool)
PARTS = [render_good(seed, size_px=192, mm_per_px=0.4).image_bgr for seed in range(16)]
LEARNED, UNSEEN = PARTS[:12], PARTS[12:]


def ranges_of(images: list[np.ndarray], mask_cells: np.ndarray = EVERYWHERE, parts: list[str] | None = None):
    maps = np.stack([appearance_map(image) for image in images])
    return learn_ranges(maps, parts or [str(n) for n in range(len(images))], mask_cells)


@pytest.fixture(scope="module")
def ranges() -> LearnedRanges:
    return ranges_of(LEARNED)


def worst(found: dict[str, Statistic]) -> float:
    return max(abs(each.distance) for each in found.values())


def exposed(image: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(image * factor, 0, 255).astype(np.uint8)


def defocused(image: np.ndarray, share_of_edge: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), share_of_edge * max(image.shape[:2]))


def test_a_cell_holds_what_its_pixels_are() -> None:
    image = np.zeros((378, 378, 3), np.uint8)
    image[:14, :14] = (10, 20, 30)
    image[14:28, :14] = 255
    cells = dict(zip(CHANNELS, appearance_map(image).reshape(27, 27, -1).transpose(2, 0, 1).astype(float), strict=True))
    assert [cells[name][0, 0] for name in ("blue", "green", "red")] == [10, 20, 30]
    assert cells["grey"][1, 0] == 255
    assert (cells["white"][1, 0], cells["black"][1, 0], cells["black"][5, 5]) == (1, 0, 1)
    assert cells["deviation"][5, 5] == cells["band 0-1"][5, 5] == 0 < cells["band 4-8"][2, 0]


def test_fine_stripes_are_fine_detail_and_coarse_ones_coarse_detail() -> None:
    columns = np.arange(378)
    fine, coarse = (
        appearance_map(
            np.broadcast_to(
                np.where(columns // width % 2, 160, 90).astype(np.uint8)[None, :, None], (378, 378, 3)
            ).copy()
        )
        for width in (1, 14)
    )
    bands = slice(CHANNELS.index("band 0-1"), CHANNELS.index("band 4-8") + 1)
    assert fine[:, bands].astype(float).mean(axis=0).argmax() == 0
    assert coarse[:, bands].astype(float).mean(axis=0).argmax() == 3


def test_unseen_good_parts_are_within_reach_of_the_learned_ones(ranges: LearnedRanges) -> None:
    assert max(worst(ranges.compare(appearance_map(part))) for part in UNSEEN) < 1.2
    assert ranges.strange == {}


@pytest.mark.parametrize(
    "spoiled",
    [
        pytest.param(lambda part: np.zeros_like(part), id="black"),
        pytest.param(lambda part: np.full_like(part, 255), id="white"),
        pytest.param(lambda part: np.full_like(part, round(part.mean())), id="grey"),
        pytest.param(lambda part: np.random.default_rng(0).integers(0, 256, part.shape, np.uint8), id="noise"),
        pytest.param(lambda part: np.random.default_rng(0).integers(0, 6, part.shape, np.uint8), id="lens cap"),
        pytest.param(lambda part: np.where(np.arange(len(part))[:, None, None] < 96, part, np.uint8(0)), id="half"),
        pytest.param(lambda part: np.roll(part, 96, axis=0), id="rolled"),
        pytest.param(lambda part: 255 - part, id="negative"),
        pytest.param(lambda part: exposed(part, 0.4), id="dark"),
        pytest.param(lambda part: exposed(part, 2.5), id="bright"),
        pytest.param(lambda part: exposed(part, 1 / 16), id="12 bit in 16"),
        pytest.param(lambda part: defocused(part, 1 / 75), id="defocused"),
        pytest.param(lambda part: part * np.uint8([1, 1, 0]), id="a colour is missing"),
    ],
)
def test_what_is_no_image_of_the_part_is_far_away(ranges: LearnedRanges, spoiled) -> None:
    for part in UNSEEN:
        assert worst(ranges.compare(appearance_map(spoiled(part).astype(np.uint8)))) > 2


@pytest.mark.parametrize("n_learned", [1, 2, 12])
@pytest.mark.parametrize("identical", [False, True])
def test_no_camera_repeats_itself_exactly(n_learned: int, identical: bool) -> None:
    learned = [LEARNED[0]] * n_learned if identical else LEARNED[:n_learned]
    ranges = ranges_of(learned)
    image = LEARNED[0]
    shifted = [np.clip(image.astype(int) + by, 0, 255).astype(np.uint8) for by in (-2, 2)]
    for slightly in (exposed(image, 0.9), exposed(image, 1.1), *shifted, defocused(image, 1 / 384)):
        assert worst(ranges.compare(appearance_map(slightly))) <= 2


@pytest.mark.parametrize("grey", [0, 4, 128, 255])
def test_a_plain_part_without_any_texture_makes_nobody_nervous(grey: int) -> None:
    plain = np.full((100, 100, 3), grey, np.uint8)
    ranges = ranges_of([plain] * 5)
    noisy = np.clip(plain + np.random.default_rng(0).normal(0, 0.7, plain.shape), 0, 255).astype(np.uint8)
    for slightly in (plain, noisy, exposed(plain, 0.9), exposed(plain, 1.1)):
        assert worst(ranges.compare(appearance_map(slightly))) <= 2
    assert worst(ranges.compare(appearance_map(np.full_like(plain, 60)))) > 2


@pytest.mark.parametrize("n_strange", [1, 2])
@pytest.mark.parametrize("factor", [0.0, 0.4, 2.5])
def test_a_spoiled_image_among_the_good_ones_does_not_widen_the_ranges(n_strange: int, factor: float) -> None:
    many = [render_good(seed, size_px=96, mm_per_px=0.8).image_bgr for seed in range(20)]
    spoiled = [exposed(image, factor) if n < n_strange else image for n, image in enumerate(many)]
    ranges = ranges_of(spoiled)
    assert sorted(ranges.strange) == list(range(n_strange))
    assert all(worst(found) > 2 for found in ranges.strange.values())
    assert worst(ranges.compare(appearance_map(exposed(many[-1], factor)))) > 2


def test_a_sixth_of_the_parts_being_darker_is_a_kind_of_good_part() -> None:
    many = [render_good(seed, size_px=96, mm_per_px=0.8).image_bgr for seed in range(24)]
    ranges = ranges_of([exposed(image, 0.5) if n < 4 else image for n, image in enumerate(many)])
    assert ranges.strange == {}
    assert worst(ranges.compare(appearance_map(exposed(many[-1], 0.5)))) < 2


def test_only_the_area_is_compared() -> None:
    left = np.zeros((27, 27), bool)
    left[:, :13] = True
    image = UNSEEN[0].copy()
    image[:, 110:] = 0
    assert worst(ranges_of(LEARNED).compare(appearance_map(image))) > 2
    assert worst(ranges_of(LEARNED, left.reshape(-1)).compare(appearance_map(image))) < 1.5


def test_images_of_one_part_say_nothing_of_how_alike_parts_are() -> None:
    shots = [LEARNED[0], exposed(LEARNED[0], 1.02), LEARNED[1], exposed(LEARNED[1], 1.02)]
    apart = ranges_of(shots)
    together = ranges_of(shots, parts=["a", "a", "b", "b"])
    layout = NAMES.index("layout_tone")
    assert together.high[layout] > apart.high[layout]


def test_what_a_coarser_image_cannot_show_is_left_out() -> None:
    found = ranges_of(LEARNED).compare(appearance_map(UNSEEN[0]), finest_px=4)
    assert set(NAMES) - set(found) == {name for name, px in FINEST_PX.items() if px < 4}


def test_statistics_are_given_in_units_that_people_know(ranges: LearnedRanges) -> None:
    found = ranges.compare(appearance_map(UNSEEN[0]))
    grey = cv2.cvtColor(UNSEEN[0], cv2.COLOR_BGR2GRAY)
    assert found["level"].value == pytest.approx(grey.mean(), abs=0.5)
    assert found["contrast"].value == pytest.approx(grey.std(), rel=0.05)
    assert found["black"].value == pytest.approx((grey <= 3).mean(), abs=0.02)
    assert -1 <= found["layout_tone"].value <= 1.02
    for each in found.values():
        assert (each.value < each.low) == (each.distance < 0) or each.distance == 0
