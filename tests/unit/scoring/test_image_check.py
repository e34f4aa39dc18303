"""What an operator reads about an image that is none of the part."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from backend.demo.samples import render_good
from backend.imaging.appearance import appearance_map
from backend.memory_bank.image_ranges import LearnedRanges, learn_ranges
from backend.scoring.image_check import image_check

PARTS = [render_good(seed, size_px=192, mm_per_px=0.4).image_bgr for seed in range(13)]
UNSEEN = PARTS[12]


@pytest.fixture(scope="module")
def ranges() -> LearnedRanges:
    maps = np.stack([appearance_map(part) for part in PARTS[:12]])
    return learn_ranges(maps, [str(n) for n in range(12)], np.ones(maps.shape[1], bool))


def lit(factor: float) -> np.ndarray:
    return np.clip(UNSEEN * factor, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros_like(UNSEEN), ["shows nothing of a part", "grey level 0, learned"]),
        (np.full_like(UNSEEN, 90), ["shows nothing of a part", "uniform", "grey level 90"]),
        (lit(0.4), ["far darker", "grey level", "lamp or exposure"]),
        (lit(2.5), ["far ", "learned"]),
        (cv2.GaussianBlur(UNSEEN, (0, 0), 4), ["far less sharp", "focus"]),
        (np.clip(UNSEEN + np.random.default_rng(0).normal(0, 25, UNSEEN.shape), 0, 255).astype(np.uint8), ["noise"]),
        (np.roll(UNSEEN, 60, axis=1), ["something else", "moved or cut off"]),
    ],
)
def test_the_sentence_says_what_is_wrong_and_what_to_look_at(ranges: LearnedRanges, image, words: list[str]) -> None:
    check = image_check(ranges.compare(appearance_map(image)))
    assert check.verdict == "foreign"
    assert check.distance > 2
    assert all(word in check.sentence for word in words), check.sentence


def test_a_good_part_needs_no_words(ranges: LearnedRanges) -> None:
    check = image_check(ranges.compare(appearance_map(UNSEEN)))
    assert (check.verdict, check.sentence) == ("ok", "")


def test_between_the_two_limits_lies_a_warning(ranges: LearnedRanges) -> None:
    checks = [image_check(ranges.compare(appearance_map(lit(1 - step / 100)))) for step in range(0, 60, 2)]
    verdicts = [check.verdict for check in checks]
    assert sorted(verdicts, key=["ok", "unusual", "foreign"].index) == verdicts
    assert set(verdicts) == {"ok", "unusual", "foreign"}
    assert all("somewhat" in check.sentence for check in checks if check.verdict == "unusual")
