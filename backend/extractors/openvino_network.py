"""The network in the form that OpenVINO gets: told its position embedding, and with its products as convolutions."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from backend.extractors.embedder import CELL_PX, PatchEmbedder


class ConvolutionalEmbedder(nn.Module):
    """A `PatchEmbedder` that OpenVINO computes faster, and that can be converted once for all input sizes.

    timm resamples the position embedding inside the network. OpenVINO has no exact counterpart of that operation
    (embeddings were off by 0.0015 with its own bicubic), and the size would have to be fixed before the conversion; so
    this network is told its position embedding. What its blocks are is told at `convolutional_block`.

    Args:
        embedder: The network, which stays as it is; all but the blocks is shared with it.
    """

    def __init__(self, embedder: PatchEmbedder) -> None:
        super().__init__()
        self.embedder = embedder
        backbone: Any = embedder.backbone
        blocks = backbone.blocks[: embedder.out_indices[-1] + 1]
        self.blocks = nn.ModuleList(convolutional_block(block) for block in blocks)
        self.eval()

    def forward(self, images_rgb: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return [1, N, D] float32 unit rows: the steps of timm's ``forward_intermediates``, spelled out."""
        backbone: Any = self.embedder.backbone
        prefix = backbone.num_prefix_tokens
        patches = backbone.patch_embed(self.embedder.pixels(images_rgb)).flatten(1, 2)
        line = _as_line(nn.functional.pad(patches, (0, 0, prefix, 0)) + positions)
        taken = []
        for index, block in enumerate(self.blocks):
            line = block(line)
            if index in self.embedder.out_indices:
                taken.append(backbone.norm(_as_tokens(line))[:, prefix:])
        return self.embedder.unit_rows(taken)


def position_embedding(embedder: PatchEmbedder, input_hw: tuple[int, int]) -> torch.Tensor:
    """Return what timm puts in front of and adds to the patch tokens: [1, prefix + N, C] float32."""
    backbone: Any = embedder.backbone
    patches = torch.zeros(1, input_hw[0] // CELL_PX, input_hw[1] // CELL_PX, backbone.embed_dim)
    with torch.no_grad():
        positions: torch.Tensor = backbone._pos_embed(patches)
    return positions


def convolutional_block(block: nn.Module) -> nn.Module:
    """Return a copy of a timm transformer block that works on a line of pixels, [B, C, 1, N], in place of tokens.

    It computes the same function. Channels last, a line lies in memory as tokens do, and what OpenVINO makes of it is
    faster in bf16 (on AVX-512 the network takes 0.94 of the time, in float32 the same):

    - products are 1×1 convolutions, which run at 430 in place of 390 GFLOP/s,
    - and add to the residual stream in float32 as they are computed, where a product's result is rounded to bf16 first;
    - heads of queries, keys and values lie side by side, so that one transposition serves all three;
    - the scales of norms, queries and layers are part of the weights.

    Args:
        block: A block of a DINOv2 network: plain attention, layer scales, an MLP from ``fc1`` to ``fc2``.
    """
    changed: Any = copy.deepcopy(block)
    attention, mlp = changed.attn, changed.mlp
    queries = slice(attention.attn_dim)  # Of the three matrices on top of each other.
    with torch.no_grad():
        for norm, first in ((changed.norm1, attention.qkv), (changed.norm2, mlp.fc1)):
            first.bias += first.weight @ norm.bias
            first.weight *= norm.weight
        for scale, last in ((changed.ls1, attention.proj), (changed.ls2, mlp.fc2)):
            last.bias *= scale.gamma
            last.weight *= scale.gamma[:, None]
        attention.qkv.bias[queries] *= attention.scale
        attention.qkv.weight[queries] *= attention.scale
    changed.norm1, changed.norm2 = _Norm(changed.norm1), _Norm(changed.norm2)
    changed.ls1 = changed.ls2 = nn.Identity()
    changed.attn = _Attention(attention)
    mlp.fc1, mlp.fc2 = _convolution(mlp.fc1), _convolution(mlp.fc2)
    mlp.chunk_dim = 1  # Of a gated MLP, which the largest DINOv2 has.
    return changed  # type: ignore[no-any-return]


class _Norm(nn.Module):
    """The norm of each token without its scale and shift."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.shape, self.eps = norm.normalized_shape, norm.eps

    def forward(self, line: torch.Tensor) -> torch.Tensor:
        return _as_line(nn.functional.layer_norm(_as_tokens(line), self.shape, eps=self.eps))


class _Attention(nn.Module):
    """timm's plain self-attention, spelled out: OpenVINO's own operation for it transposes once more."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.qkv, self.proj = _convolution(attention.qkv), _convolution(attention.proj)

    def forward(self, line: torch.Tensor, **_mask: None) -> torch.Tensor:
        """Return [B, C, 1, N] of [B, C, 1, N]; timm's block also names a mask, which no vision transformer has."""
        three = _as_tokens(self.qkv(line))
        heads = three.reshape(*three.shape[:2], 3 * self.heads, -1).transpose(1, 2)
        queries, keys, values = heads.chunk(3, dim=1)
        attended = torch.softmax(queries @ keys.transpose(-1, -2), dim=-1) @ values
        return self.proj(_as_line(attended.transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]


def _convolution(linear: nn.Linear) -> nn.Conv2d:
    convolution = nn.Conv2d(linear.in_features, linear.out_features, kernel_size=1)
    convolution.load_state_dict({"weight": linear.weight[:, :, None, None], "bias": linear.bias})
    return convolution


def _as_line(tokens: torch.Tensor) -> torch.Tensor:
    """Return [B, C, 1, N] of [B, N, C]."""
    return tokens.transpose(1, 2).unsqueeze(2)


def _as_tokens(line: torch.Tensor) -> torch.Tensor:
    """Return [B, N, C] of [B, C, 1, N]."""
    return line.squeeze(2).transpose(1, 2)
