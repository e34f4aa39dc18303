"""What an extractor is, and the terms for what computes it; needs no heavy library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from backend.imaging.placement import Placement
from backend.memory_bank.nearest import RowsOnDevice

CELL_PX: Final = 14
"""Edge of one DINOv2 patch in the network input, px."""

EngineName = Literal["torch", "openvino"]
Precision = Literal["fp32", "bf16", "fp16"]

EngineOrigin = Literal["as it is", "converted", "read from cache"]
"""How the graph that an engine runs came about."""


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What computes an extractor's network.

    Attributes:
        precision: What it multiplies in.
        warm_input_hw: The input sizes, px, that it has computed since: the next image of such a size waits for nothing.
    """

    name: EngineName
    precision: Precision
    origin: EngineOrigin
    warm_input_hw: tuple[tuple[int, int], ...]


class FeatureExtractor(Protocol):
    """Turns an image into one embedding per patch of a grid.

    Attributes:
        name: What people see, for example ``dinov2-vit-s/14``.
        extractor_id: Names everything that changes the numbers; a memory is only read with the extractor that made it.
        precision: What it multiplies in, ``fp32``, ``bf16`` or ``fp16``; a memory remembers it.
        device: ``cpu``, ``cuda:0``, ….
        whitens: True when the embeddings are raw responses that a ROI's own whitening brings to unit rows
            (``backend.memory_bank.whitening``); False when the rows are unit rows already.
        batch_size: How many images ``extract_batch`` likes to get at once.
    """

    name: str
    extractor_id: str
    precision: str
    device: str
    whitens: bool
    batch_size: int

    def placement(self, image_hw: tuple[int, int]) -> Placement:
        """Return how an image of this size is brought to the patch grid."""

    def extract(self, image_bgr: NDArray[np.uint8]) -> tuple[NDArray[np.float32], tuple[int, int]]:
        """Return the embeddings [Ht*Wt, D] float32, row-major, and the grid (Ht, Wt) of a [H, W, 3] BGR image."""

    def extract_batch(self, images_bgr: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Return the embeddings of several images of one size; each equals what ``extract`` returns, to rounding."""


@runtime_checkable
class EmbedsOnDevice(Protocol):
    """An extractor that can leave embeddings where it made them, for a search there."""

    def extract_on_device(self, images_bgr: Sequence[NDArray[np.uint8]]) -> list[RowsOnDevice] | None:
        """Return what ``extract_batch`` does, on the device; None where there is no device but the processor."""


@runtime_checkable
class HasEngine(Protocol):
    """An extractor whose network one of several engines computes."""

    def engine_facts(self) -> EngineFacts:
        """Return what computes the network, as it stands now."""


def check_image(image_bgr: NDArray[np.uint8]) -> None:
    """Raise ValueError if an image is not [H, W, 3] uint8 with H, W ≥ 1."""
    if image_bgr.dtype != np.uint8 or image_bgr.ndim != 3 or image_bgr.shape[2] != 3 or image_bgr.size == 0:
        raise ValueError(f"an image must be [H, W, 3] uint8, got {image_bgr.shape} {image_bgr.dtype}")


def embeddings_key(extractor: FeatureExtractor) -> str:
    """Return what stored embeddings are kept under: rows of two precisions never meet in one memory."""
    return f"{extractor.extractor_id};precision={extractor.precision}"
