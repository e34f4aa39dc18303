"""DINOv2 patch embeddings, against timm's network spelled out in plain steps."""

from __future__ import annotations

import copy
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image

import tests.testkit.dinov2_files as files
from backend.errors import WeightsUnavailable
from backend.extractors import dinov2
from backend.extractors.base import EngineFacts
from backend.extractors.device_search import DeviceSearch
from backend.extractors.dinov2 import DinoV2Features, to_input
from backend.extractors.weights import load_backbone

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="session")
def both_forms(tmp_path_factory: pytest.TempPathFactory) -> files.DinoV2Files:
    return files.both_forms(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def features(both_forms: files.DinoV2Files) -> DinoV2Features:
    """The plain reference, at a size that is quick: 8×8 tokens for a square image."""
    return DinoV2Features(device="cpu", weights=both_forms.timm, engine="torch", input_size=112)


@pytest.fixture(scope="module")
def network(both_forms: files.DinoV2Files) -> Any:
    """timm's network with the same weights, put there without our code."""
    network = timm.create_model("vit_small_patch14_dinov2", num_classes=0, dynamic_img_size=True)
    network.load_state_dict(files.dinov2_tensors())
    return network.eval()


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth random image [height, width, 3] uint8, BGR, whose channels differ."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def plain_embeddings(network: Any, image_bgr: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Blocks 9 and 11 of an image that has the network's size already: one step after the other."""
    pixels = torch.tensor(image_bgr[:, :, ::-1].copy()).float() / 255
    pixels = (pixels - torch.tensor(MEAN)) / torch.tensor(STD)
    with torch.no_grad():
        tokens = network._pos_embed(network.patch_embed(pixels.permute(2, 0, 1)[None]))
        after = []
        for block in network.blocks:
            tokens = block(tokens)
            after.append(network.norm(tokens)[0, 1:])
    rows = torch.cat([after[9], after[11]], dim=1).double().numpy()
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


# Embeddings


def test_rows_left_on_the_device_are_those_that_are_handed_out(features: DinoV2Features) -> None:
    batch = [photo(112, 112, seed) for seed in range(3)]
    assert features.extract_on_device(batch) is None  # nowhere to leave them
    on_device = copy.copy(features)
    on_device._search = DeviceSearch(torch.device("cpu"))
    rows = on_device.extract_on_device(batch)
    assert rows is not None
    for found, expected in zip(rows, features.extract_batch(batch), strict=True):
        np.testing.assert_array_equal(np.asarray(found), expected)
    with pytest.raises(ValueError, match="one size"):
        on_device.extract_on_device([photo(112, 112), photo(56, 112)])


def test_the_engine_facts_name_what_computes_and_which_sizes_are_warm(both_forms: files.DinoV2Files) -> None:
    features = DinoV2Features(device="cpu", weights=both_forms.timm, engine="torch", input_size=112)
    assert features.engine_facts() == EngineFacts(name="torch", precision="fp32", origin="as it is", warm_input_hw=())
    features.warm_up((64, 64))
    features.extract(photo(56, 112))
    assert features.engine_facts().warm_input_hw == ((84, 154), (112, 112))


def test_embeddings_are_those_of_the_plain_forward_pass(features: DinoV2Features, network: Any) -> None:
    image = photo(112, 112)
    embeddings, grid_hw = features.extract(image)
    assert grid_hw == (8, 8)
    assert embeddings.dtype == np.float32
    assert embeddings.shape == (64, 768)
    np.testing.assert_allclose(embeddings, plain_embeddings(network, image), atol=2e-6)


def test_both_forms_of_the_weights_give_identical_embeddings_and_one_id(
    both_forms: files.DinoV2Files, features: DinoV2Features
) -> None:
    original = DinoV2Features(device="cpu", weights=both_forms.original, engine="torch", input_size=112)
    image = photo(90, 130)
    np.testing.assert_array_equal(original.extract(image)[0], features.extract(image)[0])
    assert original.extractor_id == features.extractor_id


def test_rows_have_unit_length_even_for_an_image_without_any_contrast(features: DinoV2Features) -> None:
    for image in (photo(60, 80), np.zeros((50, 50, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)):
        embeddings, (rows, columns) = features.extract(image)
        assert len(embeddings) == rows * columns
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)


def test_384_px_give_27_by_27_tokens_of_two_times_384_numbers(both_forms: files.DinoV2Files) -> None:
    features = DinoV2Features(device="cpu", weights=both_forms.timm, engine="torch")
    embeddings, grid_hw = features.extract(photo(400, 400))
    assert grid_hw == (27, 27)
    assert embeddings.shape == (729, 768)
    assert features.placement((400, 400)).input_hw == (378, 378)


@pytest.mark.parametrize(
    ("image_hw", "square", "grid_hw"),
    [((300, 300), False, (8, 8)), ((100, 400), False, (4, 16)), ((100, 400), True, (8, 8))],
)
def test_the_grid_keeps_the_aspect_ratio_unless_resize_is_square(
    image_hw: tuple[int, int], square: bool, grid_hw: tuple[int, int], both_forms: files.DinoV2Files
) -> None:
    features = DinoV2Features(
        device="cpu", weights=both_forms.timm, engine="torch", input_size=112, resize="square" if square else "aspect"
    )
    embeddings, found_hw = features.extract(photo(*image_hw))
    assert found_hw == features.placement(image_hw).grid_hw == grid_hw
    assert len(embeddings) == grid_hw[0] * grid_hw[1]


@pytest.mark.parametrize(("top", "left"), [(0, 0), (0, 150), (50, 0), (50, 150)])
def test_a_bright_square_changes_the_tokens_where_it_lies_most(top: int, left: int, features: DinoV2Features) -> None:
    plain = np.full((100, 200, 3), 60, np.uint8)
    marked = plain.copy()
    marked[top : top + 50, left : left + 50] = 250
    before, grid_hw = features.extract(plain)
    after, _ = features.extract(marked)
    change = (1 - (before * after).sum(axis=1)).reshape(grid_hw)
    rows, columns = grid_hw
    row, column = np.unravel_index(change.argmax(), grid_hw)
    assert top <= (row + 0.5) * 100 / rows <= top + 50
    assert left <= (column + 0.5) * 200 / columns <= left + 50


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((10, 10), np.uint8),
        np.zeros((10, 10, 4), np.uint8),
        np.zeros((10, 10, 3), np.float32),
        np.zeros((0, 10, 3), np.uint8),
    ],
)
def test_what_is_not_a_bgr_image_is_refused(image: NDArray[Any], features: DinoV2Features) -> None:
    with pytest.raises(ValueError, match=r"\[H, W, 3\] uint8"):
        features.extract(image)


# Scales


def test_a_second_scale_is_resampled_to_the_first_grid_and_put_beside_it(
    both_forms: files.DinoV2Files, network: Any
) -> None:
    features = DinoV2Features(device="cpu", weights=both_forms.timm, engine="torch", input_size=112, scales=(1.0, 0.67))
    image = photo(112, 112)
    embeddings, grid_hw = features.extract(image)
    assert grid_hw == (8, 8)
    assert embeddings.shape == (64, 1536)
    first = plain_embeddings(network, image)
    # 112 · 0.67 = 75 px, which hold 5 patches.
    second = plain_embeddings(network, to_input(image, (70, 70))[:, :, ::-1]).reshape(5, 5, 768)
    # Cell centres of 8 cells in units of 5 cells; bilinear, the outermost value holds beyond the outermost centres.
    at = np.clip((np.arange(8) + 0.5) * 5 / 8 - 0.5, 0, 4)
    low = np.minimum(at.astype(int), 3)
    part = (at - low)[:, None]
    rows = second[low] * (1 - part[..., None]) + second[low + 1] * part[..., None]
    resampled = rows[:, low] * (1 - part) + rows[:, low + 1] * part
    expected = np.concatenate([first, resampled.reshape(64, 768)], axis=1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(embeddings, expected, atol=2e-6)


# Batches


def test_a_batch_gives_what_each_image_gives_alone_in_their_order(features: DinoV2Features) -> None:
    images = [photo(60, 60, seed) for seed in range(3)]
    together = features.extract_batch(images)
    assert len(together) == 3
    for embeddings, image in zip(together, images, strict=True):
        np.testing.assert_allclose(embeddings, features.extract(image)[0], atol=1e-6)
    assert features.extract_batch([]) == []


def test_images_of_different_sizes_are_no_batch(features: DinoV2Features) -> None:
    with pytest.raises(ValueError, match="images of one size"):
        features.extract_batch([photo(60, 60), photo(60, 61)])


def test_several_threads_get_their_own_embeddings(features: DinoV2Features) -> None:
    images = [photo(60, 60, seed) for seed in range(4)]
    alone = [features.extract(image)[0] for image in images]
    together: dict[int, NDArray[np.float32]] = {}
    threads = [
        threading.Thread(target=lambda i=i: together.update({i: features.extract(images[i])[0]})) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, embeddings in enumerate(alone):
        np.testing.assert_allclose(together[i], embeddings, atol=1e-6)


# Bringing an image to the network


@pytest.mark.parametrize("image_hw", [(301, 207), (40, 30)])
def test_the_resize_is_pillows_antialiased_bicubic_to_rounding(image_hw: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*image_hw, 3), dtype=np.uint8)
    expected = Image.fromarray(noise[:, :, ::-1]).resize((84, 112), Image.Resampling.BICUBIC)
    difference = np.abs(to_input(noise, (112, 84)).astype(int) - np.asarray(expected).astype(int))
    # Both round between the two passes, PyTorch with shorter weights; without antialiasing the mean is above 40.
    assert difference.max() <= 2
    assert difference.mean() < 0.05


def test_an_image_of_the_networks_size_is_taken_as_it_is() -> None:
    image = photo(112, 84)
    np.testing.assert_array_equal(to_input(image, (112, 84)), image[:, :, ::-1])


# What names an extractor


def test_the_id_names_what_changes_the_numbers_and_nothing_else(
    both_forms: files.DinoV2Files, tmp_path: Path, features: DinoV2Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dinov2, "load_backbone", cache(load_backbone))  # Seven networks are made of two.
    other = files.write_timm_file(tmp_path / "other.safetensors", files.dinov2_tensors(seed=1))

    def extractor_id(**changes: Any) -> str:
        arguments = {"device": "cpu", "weights": both_forms.timm, "engine": "torch", "input_size": 112, **changes}
        return DinoV2Features(**arguments).extractor_id

    assert features.name == "dinov2-vit-s/14"
    assert features.extractor_id.startswith("dinov2-vit-s/14;weights=")
    assert extractor_id(input_size=120, precision="bf16") == features.extractor_id
    changed = [
        extractor_id(weights=other),
        extractor_id(out_indices=(8, 11)),
        extractor_id(input_size=126),
        extractor_id(scales=(1.0, 0.67)),
        extractor_id(resize="square"),
    ]
    assert len({features.extractor_id, *changed}) == 6


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"model_name": "resnet50.a1_in1k"}, "model_name must name a DINOv2 network"),
        ({"out_indices": ()}, "out_indices must be ascending"),
        ({"out_indices": (11, 9)}, "out_indices must be ascending"),
        ({"out_indices": (-1,)}, "out_indices must be ascending"),
        ({"scales": (0.67, 1.0)}, "scales must begin with 1"),
        ({"scales": (1.0, 0.0)}, "scales must begin with 1"),
        ({"input_size": 13}, "at least 14 px"),
        ({"input_size": 28, "scales": (1.0, 0.4)}, "at least 14 px"),
        ({"device": "gpu"}, "device must be auto, cpu, cuda or cuda:N"),
    ],
)
def test_arguments_out_of_range_are_refused_before_any_weights_are_read(
    arguments: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=says):
        DinoV2Features(**{"device": "cpu", "weights": tmp_path / "absent", **arguments})


def test_a_block_that_the_network_has_not_is_refused(both_forms: files.DinoV2Files) -> None:
    with pytest.raises(ValueError, match="has 12 blocks"):
        DinoV2Features(device="cpu", weights=both_forms.timm, out_indices=(9, 12))


def test_weights_that_are_not_there_are_an_error_and_never_random_ones(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable):
        DinoV2Features(device="cpu", weights=tmp_path / "absent.pth")


def test_embeddings_that_are_not_finite_never_leave(features: DinoV2Features, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features._engine, "embed", lambda images: np.full((1, 64, 768), np.nan, np.float32))
    with pytest.raises(FloatingPointError, match="not finite"):
        features.extract(photo(60, 60))
