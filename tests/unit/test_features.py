"""The names that the feature extractor was ordered with."""

from __future__ import annotations

import inspect
import subprocess
import sys

import numpy as np
import pytest

from backend import features
from backend.extractors.filter_bank import FilterBankFeatures
from backend.features import DinoV2Features, FeaturesExtractor


def test_forward_gives_what_the_extractor_gives() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    extractor = FilterBankFeatures(input_size=64)
    embeddings, grid_hw = FeaturesExtractor(extractor).forward(image)
    assert embeddings.shape == (grid_hw[0] * grid_hw[1], 39)
    np.testing.assert_array_equal(embeddings, extractor.extract(image)[0])


def test_without_another_extractor_it_is_dinov2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "DinoV2Features", FilterBankFeatures)
    assert FeaturesExtractor().forward(np.zeros((40, 40, 3), np.uint8))[1] == (48, 48)


def test_dinov2_has_the_arguments_that_were_ordered() -> None:
    ordered = list(inspect.signature(DinoV2Features).parameters.values())[:3]
    assert {argument.name: argument.default for argument in ordered} == {
        "model_name": "vit_small_patch14_dinov2.lvd142m", "device": "auto", "out_indices": (9, 11)
    }  # fmt: skip
    assert all(argument.kind is argument.POSITIONAL_OR_KEYWORD for argument in ordered)


def test_importing_the_names_imports_no_heavy_library() -> None:
    code = "import sys, backend.features; print({'torch', 'timm', 'openvino', 'huggingface_hub'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
