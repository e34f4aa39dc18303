"""The pretrained weights: where they are found, what they are, and how they come into a network.

A file that somebody named, else the Hugging Face hub cache, else the hub itself. timm reads the file and unpickles
tensors and nothing else; a file that does not fit is refused whole, never half loaded.

Importing this module needs neither torch nor timm.
"""

from __future__ import annotations

import hashlib
import logging
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from backend.errors import WeightsUnavailable

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

HUB_FILENAMES: Final = ("model.safetensors", "pytorch_model.bin")
"""What timm calls its weights on the hub, the one without pickle first."""

HUB_TIMEOUT_S: Final = 5.0
"""How long the hub may take to answer at all before this machine counts as having no way to it."""

TO_MEND: Final = (
    "Set BDI_WEIGHTS to a weights file copied from a machine with internet (timm's model.safetensors, or the original "
    "dinov2_vits14_pretrain.pth), or let this machine reach the Hugging Face hub once."
)


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A weights file on this machine.

    Attributes:
        path: Where it lies. In the hub cache this is the named link, not the blob behind it: timm knows the format
            by the ending of the name.
        origin: ``file`` (the setting names it), ``hub-cache`` or ``hub`` (downloaded just now).
    """

    path: Path
    origin: Literal["file", "hub-cache", "hub"]


_TITLES: Final = {
    "file": "The file that BDI_WEIGHTS names",
    "hub-cache": "The weights file in the Hugging Face hub cache, which should be deleted there,",
    "hub": "The weights file that was downloaded just now",
}


def find_weights(repo_id: str, *, named: Path | None = None) -> WeightsFile:
    """Return the weights file: the one that was named, else from the hub cache, else from the hub.

    A named file that is not there is an error even if the hub has one: a memory must not depend on which was found.
    ``HF_HOME``, ``HF_HUB_CACHE``, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` mean what they mean to ``huggingface_hub``.

    Args:
        repo_id: The repository on the hub, for example ``timm/vit_small_patch14_dinov2.lvd142m``.
        named: The file that the setting ``BDI_WEIGHTS`` names.

    Raises:
        WeightsUnavailable: If the named file is not a file, or nothing is cached and the hub cannot be reached.
    """
    if named is not None:
        if not named.is_file():
            logger.error("BDI_WEIGHTS names %s, which is not a file", named)
            raise WeightsUnavailable(
                "BDI_WEIGHTS names a file that is not there, or is a folder. Correct the setting, or unset it and let "
                "this machine reach the Hugging Face hub once."
            )
        return WeightsFile(path=named, origin="file")

    # Imported late: huggingface_hub reads its environment when it is imported.
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    for filename in HUB_FILENAMES:
        cached = try_to_load_from_cache(repo_id, filename)
        if isinstance(cached, str):  # else None, or a marker for "known not to exist"
            return WeightsFile(path=Path(cached), origin="hub-cache")
    filename = HUB_FILENAMES[0]
    try:
        # Asked once, without retries: hf_hub_download alone takes half a minute to find out that there is no network.
        get_hf_file_metadata(hf_hub_url(repo_id, filename), timeout=HUB_TIMEOUT_S)
        logger.info("downloading %s from the hub", repo_id)
        path = Path(hf_hub_download(repo_id, filename, etag_timeout=HUB_TIMEOUT_S))
    except Exception as error:  # The hub client's errors have no common base, and its transport library has changed.
        logger.warning("cannot get %s from the hub: %s: %s", repo_id, type(error).__name__, error)
        raise WeightsUnavailable(
            f"The DINOv2 weights are not on this machine and cannot be had from the hub. {TO_MEND}",
            details={"repository": repo_id},
        ) from error
    return WeightsFile(path=path, origin="hub")


def load_backbone(model_name: str, weights: WeightsFile) -> torch.nn.Module:
    """Return the timm network with these weights, frozen, in eval mode, on the CPU, in float32.

    The tensors go in by name and shape as they are stored. timm's own loading would resample a position embedding or a
    patch kernel of another size; such a file is of another network.

    Args:
        model_name: timm's name with its tag, for example ``vit_small_patch14_dinov2.lvd142m``.
        weights: The file.

    Raises:
        WeightsUnavailable: If the file cannot be read, or does not hold exactly this network's tensors, all finite.
    """
    import timm
    from timm.models import load_state_dict

    title = _TITLES[weights.origin]
    try:
        tensors = load_state_dict(str(weights.path), weights_only=True)
        tensors.pop("mask_token", None)  # of the original checkpoint; only training uses it
    except Exception as error:  # A file is foreign matter: whatever reading it raises, the file is what is wrong.
        logger.exception("cannot read the weights file %s", weights.path)
        raise WeightsUnavailable(
            f"{title} cannot be read as a checkpoint: it is truncated, of another kind, or holds more than tensors. "
            f"{TO_MEND}"
        ) from error
    # Every tensor is loaded; drawing random ones first takes longer than all the rest.
    backbone: torch.nn.Module = timm.create_model(
        model_name, pretrained=False, num_classes=0, dynamic_img_size=True, weight_init="skip"
    )
    try:
        backbone.load_state_dict(tensors)
    except RuntimeError as error:
        logger.error("the weights file %s does not fit %s: %s", weights.path, model_name, error)
        first_difference = textwrap.shorten(str(error).splitlines()[1], 200)
        raise WeightsUnavailable(f"{title} is not one of {model_name}: {first_difference} {TO_MEND}") from error
    # A sum is finite only if all its terms are, and five times as fast as asking each.
    if not all(tensor.sum().isfinite() for tensor in backbone.state_dict().values()):
        raise WeightsUnavailable(f"{title} holds values that are not finite numbers. {TO_MEND}")
    logger.info("weights of %s from %s (%s)", model_name, weights.path, weights.origin)
    return backbone.eval().requires_grad_(False)


def tensors_digest(backbone: torch.nn.Module) -> str:
    """Return the SHA-256 of a network's tensors, 64 hex digits, over names, shapes and float32 values in order of name.

    Unlike the digest of a file it says the same of both forms in which the same weights are handed around, so a
    memory survives the change from the hub's safetensors to the original ``.pth``.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.state_dict().items()):
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()
