"""The network in the form that OpenVINO gets: told its position embedding, and in bf16 with products as convolutions.

Both are the same network; what changes is how OpenVINO computes it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from backend.engines import CELL_PX, PatchEmbedder


class OpenSizes(nn.Module):
    """A `PatchEmbedder` that is told its position embedding, so that it can be converted once for all input sizes.

    timm resamples the position embedding inside the network. OpenVINO has no exact counterpart of that operation
    (embeddings were off by 0.0015 with its own bicubic), and the size would have to be fixed before the conversion.

    Args:
        embedder: The network; it is not changed.
    """

    def __init__(self, embedder: PatchEmbedder) -> None:
        super().__init__()
        self.embedder = embedder
        backbone: Any = embedder.backbone
        self.blocks = backbone.blocks[: embedder.out_indices[-1] + 1]

    def with_convolutions(self) -> OpenSizes:
        """Return the same network with other blocks, see `convolutional_block`; the rest is shared."""
        changed = OpenSizes(self.embedder)
        changed.blocks = nn.ModuleList(convolutional_block(block) for block in self.blocks)
        return changed.eval()

    def positions(self, input_hw: tuple[int, int]) -> torch.Tensor:
        """Return what timm puts in front of and adds to the patch tokens: [1, prefix + N, C] float32."""
        backbone: Any = self.embedder.backbone
        patches = torch.zeros(1, input_hw[0] // CELL_PX, input_hw[1] // CELL_PX, backbone.embed_dim)
        with torch.no_grad():
            positions: torch.Tensor = backbone._pos_embed(patches)
        return positions

    def forward(self, images_rgb: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return [1, N, D] float32 unit rows: the steps of timm's ``forward_intermediates``, spelled out."""
        backbone: Any = self.embedder.backbone
        prefix = backbone.num_prefix_tokens
        patches = backbone.patch_embed(self.embedder.pixels(images_rgb)).flatten(1, 2)
        tokens = nn.functional.pad(patches, (0, 0, prefix, 0)) + positions
        taken = []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in self.embedder.out_indices:
                taken.append(backbone.norm(tokens)[:, prefix:])
        return self.embedder.unit_rows(taken)


def convolutional_block(block: nn.Module) -> nn.Module:
    """Return a copy of a timm transformer block that OpenVINO computes faster in bf16; the function is the same.

    On a processor with AVX-512 the whole network takes 0.9 of the time. Products run as 1×1 convolutions, at 430 in
    place of 390 GFLOP/s; the scales of norms, of queries and of layers are part of the weights; and the heads of
    queries, keys and values lie side by side, so that one transposition serves all three. In float32 it gains nothing.

    Args:
        block: A block of a DINOv2 network: plain attention, layer scales, an MLP from ``fc1`` to ``fc2``.
    """
    changed: Any = copy.deepcopy(block)
    with torch.no_grad():
        for norm, first in ((changed.norm1, changed.attn.qkv), (changed.norm2, changed.mlp.fc1)):
            first.bias += first.weight @ norm.bias
            first.weight *= norm.weight
            norm.weight = norm.bias = None
        for scale, last in (("ls1", changed.attn.proj), ("ls2", changed.mlp.fc2)):
            gamma = getattr(changed, scale).gamma
            last.bias *= gamma
            last.weight *= gamma[:, None]
            setattr(changed, scale, nn.Identity())
    changed.mlp.fc1, changed.mlp.fc2 = _Pointwise(changed.mlp.fc1), _Pointwise(changed.mlp.fc2)
    changed.attn = _Attention(changed.attn)
    return changed  # type: ignore[no-any-return]


class _Pointwise(nn.Module):
    """A linear layer as a 1×1 convolution over the tokens: with channels last they lie as it wants them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight[:, :, None, None], requires_grad=False)
        self.bias = linear.bias

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return [B, N, C'] of tokens [B, N, C]."""
        pixels = tokens.transpose(1, 2).unsqueeze(2)
        return nn.functional.conv2d(pixels, self.weight, self.bias).squeeze(2).transpose(1, 2)


class _Attention(nn.Module):
    """timm's plain self-attention, spelled out: OpenVINO lets its own operation for it transpose once more."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.heads = attention.num_heads
        queries = attention.attn_dim  # The first rows of the three matrices on top of each other.
        with torch.no_grad():
            attention.qkv.weight[:queries] *= attention.scale
            attention.qkv.bias[:queries] *= attention.scale
        self.qkv, self.proj = _Pointwise(attention.qkv), _Pointwise(attention.proj)

    def forward(self, tokens: torch.Tensor, **_mask: None) -> torch.Tensor:
        """Return [B, N, C] of tokens [B, N, C]; timm's block also names a mask, which no vision transformer has."""
        heads = self.qkv(tokens).unflatten(-1, (3 * self.heads, -1)).transpose(1, 2)
        queries, keys, values = heads.chunk(3, dim=1)
        attended = torch.softmax(queries @ keys.transpose(-1, -2), dim=-1) @ values
        return self.proj(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]
