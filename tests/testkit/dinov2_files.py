"""Weight files of DINOv2 ViT-S/14's right form and other values: seeded, so that a test can tell two of them apart.

The real values come from a hub that no build machine reaches. Layer scales are of a size at which every block matters;
freshly initialised ones (1e-5) would let a network pass that skips all its blocks.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.seeded_weights import seeded_tensors

MODEL_NAME = "vit_small_patch14_dinov2.lvd142m"
REPO_ID = f"timm/{MODEL_NAME}"
WIDTH = 384


def dinov2_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """Return float32 tensors by timm's names, the form of ``model.safetensors``; the dict is yours, its tensors not."""
    return dict(_tensors(seed))


@cache
def _tensors(seed: int) -> dict[str, torch.Tensor]:
    return seeded_tensors(seed)


def write_timm_file(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Write the form that timm keeps on the hub."""
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def write_original_file(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Write the form of ``dinov2_vits14_pretrain.pth``: a pickled state dict with a mask token."""
    torch.save({**tensors, "mask_token": torch.zeros(1, WIDTH)}, path)
    return path


def write_hub_cache(hub_cache: Path, weights: Path, *, filename: str = "model.safetensors") -> Path:
    """Lay a file into a hub cache folder the way ``huggingface_hub`` does, and return its path there."""
    repository = hub_cache / f"models--{REPO_ID.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    blob, link = repository / "blobs" / "cafe", repository / "snapshots" / commit / filename
    for folder in (blob.parent, link.parent, repository / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copyfile(weights, blob)
    link.symlink_to(blob)
    return link


@dataclass(frozen=True)
class DinoV2Files:
    """The same weights in both forms."""

    timm: Path
    original: Path


@cache
def both_forms(folder: Path) -> DinoV2Files:
    """Write the weights of seed 0 in both forms, once: test modules share ``tmp_path_factory.getbasetemp()``."""
    tensors = dinov2_tensors()
    return DinoV2Files(
        timm=write_timm_file(folder / "model.safetensors", tensors),
        original=write_original_file(folder / "dinov2_vits14_pretrain.pth", tensors),
    )
