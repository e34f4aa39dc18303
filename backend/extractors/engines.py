"""Compute engines: what runs the network, on which device and in which precision.

An engine takes images that already have the network's size and gives patch embeddings. All engines run the same
`PatchEmbedder`; PyTorch on the CPU in float32 is the plain reference that the others are tested against.
"""

from __future__ import annotations

import logging
import re
import threading
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from backend.errors import Unavailable
from backend.extractors.base import EngineName, EngineOrigin, Precision
from backend.extractors.embedder import TORCH_DTYPES, Engine, PatchEmbedder
from backend.extractors.openvino_engine import OpenVinoEngine, OpenVinoUnusable

logger = logging.getLogger(__name__)

_NO_CUDA = "this machine has no usable CUDA device"


class TorchEngine:
    """Runs the network with PyTorch.

    Below fp32 it runs under autocast, which keeps norms, softmax and the residual stream in float32.

    Args:
        embedder: The network; it is moved to the device.
        device: ``cpu`` or ``cuda:N``.
        precision: In what products are computed. ``auto`` is fp32 on a CPU, and on CUDA fp16, whose three more bits of
            mantissa stay nearer to fp32 than bf16.
    """

    name: EngineName = "torch"
    origin: EngineOrigin = "as it is"

    def __init__(
        self, embedder: PatchEmbedder, *, device: str = "cpu", precision: Precision | Literal["auto"] = "auto"
    ) -> None:
        self._device = torch.device(device)
        self._on_cuda = self._device.type == "cuda"
        self.device = device
        self.precision: Precision = ("fp16" if self._on_cuda else "fp32") if precision == "auto" else precision
        # On a CPU one image fills all cores already; several at once only leave the caches (measured: 1.0 to 1.17 times
        # the time per image). On CUDA 378 px images are small, so some are taken together; not measured.
        self.batch_size = 8 if self._on_cuda else 1
        self._embedder = embedder.to(self._device).eval()
        self._lock = threading.Lock()

    def embed(self, images_rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return patch embeddings [B, N, D] float32, unit rows, of images [B, h, w, 3] uint8."""
        embeddings: NDArray[np.float32] = self.embed_on_device(images_rgb).cpu().numpy()
        return embeddings

    def embed_on_device(self, images_rgb: NDArray[np.uint8]) -> torch.Tensor:
        """Return what ``embed`` does, where it was computed."""
        images = torch.from_numpy(np.ascontiguousarray(images_rgb))
        if self._on_cuda:
            images = images.pin_memory().to(self._device, non_blocking=True)
        autocast = torch.autocast(
            self._device.type, TORCH_DTYPES[self.precision], enabled=self.precision != "fp32", cache_enabled=False
        )
        with self._lock, torch.inference_mode(), autocast:
            embeddings: torch.Tensor = self._embedder(images)
        return embeddings


def resolve_device(device: str) -> str:
    """Return ``cpu`` or ``cuda:N`` for a device setting.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ValueError: If it is none of these.
        Unavailable: If it asks for a CUDA device that is not there or does not compute.
    """
    wanted = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", device)
    if wanted is None:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}")
    if device == "cpu":
        return "cpu"
    index = int(wanted[1] or 0)
    why_not = _why_cuda_is_unusable(index)
    if why_not is None:
        return f"cuda:{index}"
    if device == "auto":
        if why_not != _NO_CUDA:
            logger.warning("the CPU computes: %s", why_not)
        return "cpu"
    raise Unavailable(
        f"The device {device} was asked for: {why_not}. Set BDI_DEVICE to auto or cpu, or mend the driver."
    )


def _why_cuda_is_unusable(index: int) -> str | None:
    """Return what keeps a CUDA device from computing, or None."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        return _NO_CUDA
    if index >= count:
        return f"this machine has {count} CUDA device(s), counted from 0"
    try:
        # A device that is too old for this build of PyTorch is counted as available, and fails at the first kernel.
        torch.ones(1, device=f"cuda:{index}").add(1).item()
    except RuntimeError as error:
        logger.warning("CUDA device %d does not compute: %s", index, error)
        return "this build of PyTorch cannot compute on that CUDA device"
    return None


def choose_engine(
    embedder: PatchEmbedder,
    *,
    engine: EngineName | Literal["auto"] = "auto",
    precision: Precision | Literal["auto"] = "auto",
    device: str = "cpu",
    weights_digest: str = "",
    cache_dir: Path | None = None,
    threads: int | None = None,
) -> tuple[Engine, str | None]:
    """Return the engine that the settings choose and, where it is not the one hoped for, why.

    ``auto`` is PyTorch on CUDA and OpenVINO on a CPU; where OpenVINO cannot be used, PyTorch there too, with a warning.

    Args:
        embedder: The network.
        engine: ``auto``, ``torch`` or ``openvino``.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        device: ``cpu`` or ``cuda:N``, as `resolve_device` returns it.
        weights_digest: Names the weights, for what is kept in ``cache_dir``.
        cache_dir: Where an engine keeps what it converted; None keeps nothing.
        threads: How many CPU threads compute, for the whole process; None leaves it to the libraries.

    Raises:
        ValueError: If OpenVINO is asked for on another device than the CPU, or ``threads`` is not positive.
        Unavailable: If OpenVINO is asked for and cannot be used, or this processor has not the precision.
    """
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    on_cpu = device == "cpu"
    if engine == "openvino" and not on_cpu:
        raise ValueError(f"the engine openvino runs on the CPU, not on {device}")
    if engine == "torch" or not on_cpu:
        return TorchEngine(embedder, device=device, precision=precision), None

    try:
        return (
            OpenVinoEngine(
                embedder, precision=precision, weights_digest=weights_digest, cache_dir=cache_dir, threads=threads
            ),
            None,
        )
    except OpenVinoUnusable as error:
        if engine == "openvino":
            raise
        fallback = f"PyTorch computes in OpenVINO's place, two to three times as long per image. {error.sentence}"
        logger.warning("%s", fallback)
        return TorchEngine(embedder, device=device, precision=precision), fallback
