from pathlib import Path

import cv2
import numpy as np
import pytest

from backend.demo.demo_parts import evenly, folder_parts, rendered_parts
from backend.demo.samples import render_defective, render_good


@pytest.mark.parametrize(
    ("n", "picked"),
    [(1, [0]), (2, [0, 5]), (3, [0, 3, 6]), (10, list(range(10))), (99, list(range(10)))],
)
def test_evenly_takes_at_most_so_many_from_the_whole_range(n, picked):
    paths = [Path(str(index)) for index in range(10)]
    assert evenly(paths, n) == [paths[index] for index in picked]


def test_three_quarters_of_the_rendered_good_parts_are_learned_and_the_others_held_out():
    parts = rendered_parts(8, 0.2)
    assert (len(parts.fit), len(parts.good), len(parts.defective)) == (6, 2, 8)
    assert len({part.image_bgr.tobytes() for part in (*parts.fit, *parts.good, *parts.defective)}) == 16
    assert all(part.defect_mask is None and not part.is_defective for part in (*parts.fit, *parts.good))
    assert all(part.defect_mask.any() and part.is_defective for part in parts.defective)


@pytest.mark.parametrize("n_good", [7, 1001])
def test_too_few_and_too_many_good_parts_are_refused(n_good):
    with pytest.raises(ValueError, match="at least 8 good parts are needed"):
        rendered_parts(n_good, 0.2)


def test_another_seed_gives_other_parts_with_the_same_kinds_of_defects():
    usual, other = rendered_parts(8, 0.2), rendered_parts(8, 0.2, seed=1)
    seen = {part.image_bgr.tobytes() for part in (*usual.fit, *usual.good, *usual.defective)}
    assert seen.isdisjoint(part.image_bgr.tobytes() for part in (*other.fit, *other.good, *other.defective))
    assert [part.name.split(",")[0] for part in usual.defective] == [
        part.name.split(",")[0] for part in other.defective
    ]
    # Seed 0 shows the parts that were always shown.
    assert (usual.fit[0].image_bgr == render_good(0).image_bgr).all()
    assert (usual.defective[0].image_bgr == render_defective(1000, "pit").image_bgr).all()
    assert (other.defective[0].image_bgr == render_defective(11_000, "pit").image_bgr).all()


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="--seed is -1"):
        rendered_parts(8, 0.2, seed=-1)


def _write(path, size=(24, 16), value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((size[1], size[0], 3), value, np.uint8))


@pytest.fixture
def folder(tmp_path):
    for index in range(60):
        _write(tmp_path / "train" / "good" / f"{index:03}.png")
    for index in range(3):
        _write(tmp_path / "test" / "good" / f"{index:03}.png", value=91)
    _write(tmp_path / "test" / "crack" / "000.png")
    _write(tmp_path / "test" / "dent" / "000.png", size=(12, 8))
    mask = np.zeros((8, 12), np.uint8)
    mask[2:4, 6:9] = 255
    (tmp_path / "ground_truth" / "dent").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "ground_truth" / "dent" / "000_mask.png"), mask)
    (tmp_path / "train" / "good" / "notes.txt").write_text("not an image")
    return tmp_path


def test_a_folder_of_images_is_thinned_out_and_says_so(folder):
    parts = folder_parts(folder, 0.1)
    assert (len(parts.fit), len(parts.good), len(parts.defective)) == (50, 3, 2)
    assert [part.name for part in parts.defective] == ["crack/000.png", "dent/000.png"]
    assert "50 of 60 images to learn from, 3 of 3 good and 2 of 2 defective" in parts.remark
    assert parts.mm_per_px == 0.1
    assert parts.ring is None


def test_images_of_another_size_are_brought_to_the_size_of_the_first_with_their_masks(folder):
    parts = folder_parts(folder, 0.1)
    crack, dent = parts.defective
    assert crack.defect_mask is None
    assert dent.image_bgr.shape == (16, 24, 3)
    assert dent.defect_mask.shape == (16, 24)
    assert dent.defect_mask[5:7, 13:17].all()
    assert not dent.defect_mask[:3].any()
    assert "1 of other sizes were brought to the 24 × 16 px of the first" in parts.remark


@pytest.mark.parametrize("missing", ["train/good", "test/good", "test/<defect>"])
def test_a_folder_without_one_of_the_three_kinds_of_image_is_refused_by_name(folder, missing):
    emptied = ["test/crack", "test/dent"] if missing == "test/<defect>" else [missing]
    for name in emptied:
        for path in (folder / name).glob("*.png"):
            path.unlink()
    with pytest.raises(ValueError, match=f"There are no images in .*{Path(missing).name}; expected are train/good"):
        folder_parts(folder, 0.2)
