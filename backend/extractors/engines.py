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
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return "cpu"
    resolved = f"cuda:{wanted[1] or 0}"
    try:
        # A device that is too old for this build of PyTorch is counted as available, and fails at the first kernel.
        torch.ones(1, device=resolved).add(1).item()
    except (RuntimeError, AssertionError) as error:  # AssertionError: a build of PyTorch without CUDA.
        if device == "auto":
            logger.warning("the CPU computes: PyTorch cannot compute on %s: %s", resolved, error)
            return "cpu"
        logger.error("PyTorch cannot compute on %s: %s", resolved, error)
        raise Unavailable(
            f"The device {device} was asked for, but PyTorch cannot compute on it; the log says why. Set BDI_DEVICE to "
            "auto or cpu, or mend the driver."
        ) from error
    return resolved


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
    The device is one that `resolve_device` returned; ``threads`` holds for the whole process, and None leaves their
    number to the libraries. The other arguments are those of the engines.

    Raises:
        ValueError: If OpenVINO is asked for on another device than the CPU.
        Unavailable: If OpenVINO is asked for and cannot be used, or this processor has not the precision.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if engine == "openvino" and device != "cpu":
        raise ValueError(f"the engine openvino runs on the CPU, not on {device}")
    fallback = None
    if engine != "torch" and device == "cpu":
        try:
            openvino_engine = OpenVinoEngine(
                embedder, precision=precision, weights_digest=weights_digest, cache_dir=cache_dir, threads=threads
            )
            return openvino_engine, None
        except OpenVinoUnusable as error:
            if engine == "openvino":
                raise
            fallback = f"PyTorch computes in OpenVINO's place, two to three times as long per image. {error.sentence}"
            logger.warning("%s", fallback)
    return TorchEngine(embedder, device=device, precision=precision), fallback
