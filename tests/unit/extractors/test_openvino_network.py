"""The form in which OpenVINO gets the network is the network."""

from __future__ import annotations

import copy

import pytest
import timm
import torch

import tests.testkit.dinov2_files as files
from backend.extractors.embedder import PatchEmbedder
from backend.extractors.openvino_network import ConvolutionalEmbedder, convolutional_block, position_embedding
from backend.extractors.weights import WeightsFile, load_backbone


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> PatchEmbedder:
    path = files.both_forms(tmp_path_factory.getbasetemp()).timm
    return PatchEmbedder(load_backbone(files.MODEL_NAME, WeightsFile(path=path, origin="file")), (9, 11)).eval()


@pytest.mark.parametrize("input_hw", [(112, 84), (70, 70)])
@torch.inference_mode()
def test_the_embeddings_are_those_of_timm(input_hw: tuple[int, int], embedder: PatchEmbedder) -> None:
    images = torch.randint(0, 256, (1, *input_hw, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = ConvolutionalEmbedder(embedder)(images, position_embedding(embedder, input_hw))
    torch.testing.assert_close(found, embedder(images), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "vit_giant_patch14_dinov2"]
)
@torch.no_grad()
def test_a_block_of_every_dinov2_has_a_convolutional_form_and_stays_as_it_is(name: str) -> None:
    torch.manual_seed(0)
    small = {"embed_dim": 96, "num_heads": 3} if "giant" in name else {}  # Its MLP is gated; its size is a billion.
    block = timm.create_model(name, pretrained=False, depth=1, **small).eval().blocks[0]
    for parameter in block.parameters():  # Fresh norms and scales are all ones, and would hide that they are left out.
        parameter.copy_(0.5 * torch.randn_like(parameter))
    before = copy.deepcopy(block.state_dict())
    tokens = torch.randn(1, 31, block.norm1.normalized_shape[0])
    expected = block(tokens)
    line = convolutional_block(block)(tokens.transpose(1, 2).unsqueeze(2))
    assert (expected - tokens).abs().max() > 1
    torch.testing.assert_close(
        line.squeeze(2).transpose(1, 2), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
    )
    torch.testing.assert_close(block.state_dict(), before, rtol=0, atol=0)
