from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.datasets import DatasetError, read_dataset

_SIZE_PX = 112


def test_the_layout_is_read_and_a_missing_mask_is_no_error(data):
    assert (data.name, len(data.train), len(data.good), len(data.defective)) == ("flanges", 7, 4, 4)
    assert (data.image_hw, data.n_resized, data.n_masks) == ((_SIZE_PX, _SIZE_PX), 0, 2)
    masks = {image.name: data.defect_mask(image) for image in (*data.good, *data.defective)}
    assert masks["rust/002.png"] is None
    assert masks["missing_hole/001.png"].any()
    assert not masks["good/007.png"].any()


def test_shots_are_drawn_without_repetition_and_the_seed_decides(data):
    first, again, other = data.draw(5, 0), data.draw(5, 0), data.draw(5, 1)
    assert len(set(first.fit)) == 5
    assert set(first.fit) <= set(data.train)
    assert first == again
    assert first.fit != other.fit
    assert first.test == data.good + data.defective


def test_a_pooled_draw_tests_on_the_good_parts_that_are_left(data):
    split = data.draw(6, 3, pooled=True)
    good = {image for image in split.test if not image.is_defective}
    assert len(split.fit) == 6
    assert good == {*data.train, *data.good} - set(split.fit)


@pytest.mark.parametrize(("shots", "pooled"), [(1, False), (8, False), (11, True)])
def test_more_shots_than_there_are_images_are_refused(data, shots, pooled):
    with pytest.raises(DatasetError, match=f"--shots is {shots}, but .*train/good.* has {11 if pooled else 7} images"):
        data.draw(shots, 0, pooled=pooled)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"There is no folder .*nowhere; expected are train/good"):
        read_dataset(tmp_path / "nowhere")


def test_the_folder_above_the_data_is_answered_with_a_hint(folder):
    with pytest.raises(DatasetError, match=r"no images in .*train.good; expected are .* Did you mean .*flanges\?"):
        read_dataset(folder.parent)


@pytest.mark.parametrize("missing", ["train/good", "test/good", "test/<defect>"])
def test_each_missing_part_of_the_layout_is_named(tmp_path, missing):
    for place in ("train/good", "test/good", "test/hole"):
        if place != missing.replace("<defect>", "hole"):
            _write(tmp_path / place / "1.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(DatasetError, match=missing.replace("/", ".")):
        read_dataset(tmp_path)


def _tiny(root: Path, **sizes: tuple[int, int]) -> None:
    for place in ("train/good", "test/good", "test/hole"):
        _write(root / place / "1.png", np.zeros((*sizes.get(place.replace("/", "_"), (20, 10)), 3), np.uint8))


def test_images_of_nearly_one_size_are_brought_to_one_and_their_masks_with_them(tmp_path):
    _tiny(tmp_path, test_hole=(21, 10))
    mask = np.zeros((21, 10), np.uint8)
    mask[-2:] = 1  # Any value but 0 marks the defect.
    _write(tmp_path / "ground_truth" / "hole" / "1_mask.png", mask)
    data = read_dataset(tmp_path)
    assert (data.image_hw, data.n_resized) == ((20, 10), 1)
    pixels = cv2.imdecode(np.frombuffer(data.data(data.defective[0]), np.uint8), cv2.IMREAD_COLOR)
    assert pixels.shape == (20, 10, 3)
    resized = data.defect_mask(data.defective[0])
    assert resized.shape == (20, 10)
    assert resized[-1].all()
    assert not resized[:17].any()
    assert data.data(data.good[0]) == data.good[0].path.read_bytes()


def test_images_of_quite_different_sizes_are_refused(tmp_path):
    _tiny(tmp_path, test_hole=(40, 10))
    with pytest.raises(DatasetError, match="differ in size by more than 10 %"):
        read_dataset(tmp_path)


def test_masks_under_other_names_are_noticed(tmp_path):
    _tiny(tmp_path)
    _write(tmp_path / "ground_truth" / "hole" / "1.png", np.zeros((20, 10), np.uint8))
    with pytest.raises(DatasetError, match=r"must be called 1_mask\.png"):
        read_dataset(tmp_path)


def test_a_mask_of_another_size_than_its_image_is_refused(tmp_path):
    _tiny(tmp_path)
    _write(tmp_path / "ground_truth" / "hole" / "1_mask.png", np.zeros((10, 20), np.uint8))
    data = read_dataset(tmp_path)
    with pytest.raises(DatasetError, match="differ in size"):
        data.defect_mask(data.defective[0])


def test_a_file_that_is_no_image_is_named(tmp_path):
    _tiny(tmp_path)
    (tmp_path / "test" / "good" / "2.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"2\.png is not an image"):
        read_dataset(tmp_path)


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = cv2.imencode(path.suffix, pixels)[1]
    path.write_bytes(encoded.tobytes())
