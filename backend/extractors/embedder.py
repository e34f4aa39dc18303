"""The network that every engine runs, and what an engine is."""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from backend.extractors.base import EngineName, EngineOrigin, Precision

TORCH_DTYPES: Final[dict[Precision, torch.dtype]] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


class Engine(Protocol):
    """Runs the network.

    Attributes:
        device: ``cpu``, ``cuda:0``, ….
        precision: In what the products are computed; embeddings leave as float32 whatever it is.
        batch_size: How many images of one size it is worth giving at once.
    """

    name: EngineName
    origin: EngineOrigin
    device: str
    precision: Precision
    batch_size: int

    def embed(self, images_rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return patch embeddings [B, N, D] float32, unit rows, of images [B, h, w, 3] uint8."""


class PatchEmbedder(nn.Module):
    """From pixels to unit patch embeddings: everything that an engine runs.

    Normalises with the weights' own mean and standard deviation, takes the patch tokens after the chosen blocks with
    the final norm (as DINOv2's ``get_intermediate_layers(norm=True)``, Oquab et al. 2023, arXiv:2304.07193), puts them
    side by side and brings each row to unit length. The class token is dropped.

    Args:
        backbone: A timm vision transformer.
        out_indices: Blocks counted from 0, ascending.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, backbone: nn.Module, out_indices: tuple[int, ...]) -> None:
        super().__init__()
        self.backbone = backbone
        self.out_indices = out_indices
        for name in ("mean", "std"):  # The config gives them for pixels in [0, 1].
            per_channel = torch.tensor(backbone.pretrained_cfg[name]).view(1, 3, 1, 1)  # type: ignore[index]
            self.register_buffer(name, per_channel * 255.0, persistent=False)

    def forward(self, images_rgb: torch.Tensor) -> torch.Tensor:
        """Return [B, N, D] float32 unit rows of images [B, h, w, 3] uint8; h and w multiples of the patch size."""
        tokens: list[torch.Tensor] = self.backbone.forward_intermediates(  # type: ignore[operator]
            self.pixels(images_rgb),
            indices=list(self.out_indices),
            norm=True,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        return self.unit_rows(tokens)

    def pixels(self, images_rgb: torch.Tensor) -> torch.Tensor:
        """Return [B, 3, h, w], normalised, of [B, h, w, 3] uint8."""
        return (images_rgb.permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean) / self.std

    def unit_rows(self, tokens: list[torch.Tensor]) -> torch.Tensor:
        """Return [B, N, D] float32 unit rows of one [B, N, C] per chosen block."""
        return nn.functional.normalize(torch.cat(tokens, dim=-1).float(), dim=-1)
