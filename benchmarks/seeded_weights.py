"""Weights of DINOv2 ViT-S/14's right form and other values, for machines that do not have the real ones.

A network runs the same arithmetic whatever its weights are, so times measured with these are those of the real ones.
What it sees is another matter: with these it tells good parts from defective ones by accident only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from backend.errors import WeightsUnavailable
from backend.extractors.weights import find_weights

MODEL_NAME = "vit_small_patch14_dinov2.lvd142m"
WIDTH, DEPTH, PATCH_PX, GRID = 384, 12, 14, 37


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A weights file, and what a table says of it."""

    path: Path
    title: str


def weights_for_benchmarks(folder: Path, *, named: Path | None = None) -> Weights:
    """Return the real weights where the service finds them, else seeded ones, written into a folder.

    Args:
        folder: For the seeded file.
        named: A weights file; it must be there.

    Raises:
        WeightsUnavailable: If a file was named and is not there.
    """
    try:
        found = find_weights(f"timm/{MODEL_NAME}", named=named)
        return Weights(path=found.path, title="a named weights file" if found.origin == "file" else "the hub's weights")
    except WeightsUnavailable:
        if named is not None:
            raise
    path = folder / "seeded.safetensors"
    save_file(seeded_tensors(), path, metadata={"format": "pt"})
    return Weights(path=path, title="seeded random weights (the same form and arithmetic as the real ones)")


def seeded_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """Return float32 tensors by timm's names, the form of ``model.safetensors``.

    Layer scales are of a size at which every block matters; freshly initialised ones (1e-5) would let a network pass
    that skips all its blocks.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape: int, std: float, mean: float = 0.0) -> torch.Tensor:
        return torch.from_numpy(mean + std * rng.standard_normal(shape, dtype=np.float32))

    tensors = {
        "cls_token": normal(1, 1, WIDTH, std=0.02),
        "pos_embed": normal(1, 1 + GRID * GRID, WIDTH, std=0.2),
        "patch_embed.proj.weight": normal(WIDTH, 3, PATCH_PX, PATCH_PX, std=(3 * PATCH_PX**2) ** -0.5),
        "patch_embed.proj.bias": normal(WIDTH, std=0.02),
        "norm.weight": normal(WIDTH, std=0.1, mean=1.0),
        "norm.bias": normal(WIDTH, std=0.02),
    }
    for block in range(DEPTH):
        for name, rows, columns in (
            ("attn.qkv", 3 * WIDTH, WIDTH),
            ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", 4 * WIDTH, WIDTH),
            ("mlp.fc2", WIDTH, 4 * WIDTH),
        ):
            tensors[f"blocks.{block}.{name}.weight"] = normal(rows, columns, std=columns**-0.5)
            tensors[f"blocks.{block}.{name}.bias"] = normal(rows, std=0.02)
        for number in (1, 2):
            tensors[f"blocks.{block}.norm{number}.weight"] = normal(WIDTH, std=0.1, mean=1.0)
            tensors[f"blocks.{block}.norm{number}.bias"] = normal(WIDTH, std=0.02)
            tensors[f"blocks.{block}.ls{number}.gamma"] = normal(WIDTH, std=0.1, mean=0.3)
    return tensors
