"""DINOv2 patch embeddings of an image, the default extractor.

Importing this module needs neither torch nor timm; making an extractor does.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.errors import WeightsUnavailable
from backend.extractors.base import CELL_PX, EngineFacts, EngineName, Precision, check_image
from backend.extractors.weights import find_weights, load_backbone, tensors_digest
from backend.imaging.placement import Placement, Resize, place
from backend.memory_bank.nearest import RowsOnDevice

if TYPE_CHECKING:
    from backend.extractors.engines import TorchEngine

logger = logging.getLogger(__name__)

_NO_TORCH = (
    "DINOv2 needs PyTorch and timm, which are not installed here or do not load. Install them with "
    '`pip install ".[torch]"`, or set BDI_EXTRACTOR to filter-bank.'
)


class DinoV2Features:
    """Embeds an image as one unit vector per 14 px patch of a frozen DINOv2 network.

    Oquab et al. 2023, arXiv:2304.07193, through timm; used as in PatchCore (Roth et al. 2022, arXiv:2106.08265), except
    that the blocks are those of a transformer and neighbouring patches are not pooled: a transformer's tokens have seen
    their neighbourhood. The whole image is resized to the network input (bicubic, antialiased, nothing cropped or
    padded). With more than one scale the image is also embedded at smaller sizes, and those grids are resampled to the
    first one, so that a row holds the same place at every scale.

    Obeys `backend.extractors.base.FeatureExtractor`.

    Args:
        model_name: timm's name of a DINOv2 network with its tag.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:N``.
        out_indices: Blocks, counted from 0 and ascending, whose tokens are put side by side.
        input_size: Edge of the network input for a square image, px; rounded down to a multiple of 14.
        scales: Sizes at which an image is embedded, as factors of ``input_size``; the first is 1 and gives the grid.
        resize: ``aspect`` or ``square``, see `backend.imaging.placement.place`.
        weights: A weights file; None looks into the hub cache and then asks the hub.
        engine: See `backend.extractors.engines.choose_engine`.
        precision: What the network multiplies in; ``auto`` leaves it to the engine.
        cache_dir: Where an engine may keep what it compiled; None keeps nothing.
        threads: How many CPU threads to compute with; None leaves it to the engine.

    Raises:
        ValueError: If an argument is out of its range.
        WeightsUnavailable: If the weights cannot be had or do not fit, or PyTorch or timm is not installed.
        Unavailable: If the device, engine or precision that was asked for is not there.
    """

    whitens = False

    def __init__(
        self,
        model_name: str = "vit_small_patch14_dinov2.lvd142m",
        device: str = "auto",
        out_indices: Sequence[int] = (9, 11),
        *,
        input_size: int = 384,
        scales: Sequence[float] = (1.0,),
        resize: Resize = "aspect",
        weights: Path | None = None,
        engine: EngineName | Literal["auto"] = "auto",
        precision: Precision | Literal["auto"] = "auto",
        cache_dir: Path | None = None,
        threads: int | None = None,
    ) -> None:
        self.name = _public_name(model_name)
        self._warm_input_hw: frozenset[tuple[int, int]] = frozenset()  # replaced, so that a reader never sees it change
        self._input_size = input_size // CELL_PX * CELL_PX
        self._scales = tuple(float(scale) for scale in scales)
        self._resize = resize
        layers = tuple(out_indices)
        if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0:
            raise ValueError(f"out_indices must be ascending block numbers from 0, got {layers}")
        if not self._scales or self._scales[0] != 1.0 or min(self._scales) <= 0:
            raise ValueError(f"scales must begin with 1 and be positive, got {self._scales}")
        self._placement((1, 1), min(self._scales))  # raises if the smallest input holds no patch
        try:  # Here and not above: PyTorch and timm take seconds, and the service does without them.
            import torch

            from backend.extractors.device_search import DeviceSearch
            from backend.extractors.embedder import PatchEmbedder
            from backend.extractors.engines import choose_engine, resolve_device
        except (ImportError, OSError) as error:  # OSError: a library of theirs that Windows does not load.
            logger.error("PyTorch and timm cannot be imported: %s", error)
            raise WeightsUnavailable(_NO_TORCH) from error
        self.device = resolve_device(device)
        backbone: Any = load_backbone(model_name, find_weights(f"timm/{model_name}", named=weights))
        if layers[-1] >= len(backbone.blocks):
            raise ValueError(f"{self.name} has {len(backbone.blocks)} blocks, got out_indices {layers}")
        digest = tensors_digest(backbone)
        self.extractor_id = ";".join(
            (
                self.name,
                f"weights={digest[:16]}",
                f"layers={','.join(map(str, layers))}",
                f"input={self._input_size}",
                f"scales={','.join(f'{scale:g}' for scale in self._scales)}",
                f"resize={resize}",
            )
        )
        self._engine, self.engine_fallback = choose_engine(
            PatchEmbedder(backbone, layers),
            engine=engine,
            precision=precision,
            device=self.device,
            weights_digest=digest,
            cache_dir=cache_dir,
            threads=threads,
        )
        self.precision: str = self._engine.precision
        self.batch_size = self._engine.batch_size
        # On the CPU there is nowhere to leave rows: the search there has them already.
        self._search = None if self.device == "cpu" else DeviceSearch(torch.device(self.device))

    def engine_facts(self) -> EngineFacts:
        """Return what computes the network, as it stands now."""
        return EngineFacts(
            name=self._engine.name,
            precision=self._engine.precision,
            origin=self._engine.origin,
            warm_input_hw=tuple(sorted(self._warm_input_hw)),
        )

    def placement(self, image_hw: tuple[int, int]) -> Placement:
        """Return how an image of this size is brought to the patch grid."""
        return self._placement(image_hw, 1.0)

    def extract(self, image_bgr: NDArray[np.uint8]) -> tuple[NDArray[np.float32], tuple[int, int]]:
        """Return the patch embeddings of an image and their grid.

        Args:
            image_bgr: [H, W, 3] uint8, BGR.

        Returns:
            Embeddings [Ht*Wt, D] float32, unit rows, row-major; and (Ht, Wt). D is 384 per block and scale for ViT-S.

        Raises:
            ValueError: If the image has another shape or dtype.
        """
        return self.extract_batch([image_bgr])[0], self.placement(image_bgr.shape[:2]).grid_hw

    def extract_batch(self, images_bgr: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Return the embeddings [Ht*Wt, D] of several images of one size, in order.

        Args:
            images_bgr: Images [H, W, 3] uint8, BGR; any number, computed ``batch_size`` at a time.

        Raises:
            ValueError: If an image has another shape or dtype, or the images differ in size.
        """
        return [rows for batch in self._batches(images_bgr) for rows in self._embed(batch)]

    def extract_on_device(self, images_bgr: Sequence[NDArray[np.uint8]]) -> list[RowsOnDevice] | None:
        """Return what `extract_batch` does, left on the device; None on the CPU, and where several scales are joined.

        Raises:
            ValueError: As `extract_batch`.
        """
        if self._search is None or len(self._scales) > 1:
            return None
        from backend.extractors.device_search import DeviceRows

        found: list[RowsOnDevice] = []
        for batch in self._batches(images_bgr):
            input_hw = self.placement(batch[0].shape[:2]).input_hw
            embeddings = cast("TorchEngine", self._engine).embed_on_device(_network_input(batch, input_hw))
            self._check_finite(bool(embeddings.isfinite().all()))
            self._warm_input_hw |= {input_hw}
            found.extend(DeviceRows(rows, self._search) for rows in embeddings)
        return found

    def warm_up(self, image_hw: tuple[int, int]) -> None:
        """Make the engine ready for images of this size, so that the first inspection is as fast as the next."""
        blank = np.zeros((*image_hw, 3), np.uint8)
        self.extract_batch([blank] * (self.batch_size + 1))  # a full batch, and a single image

    def _batches(self, images_bgr: Sequence[NDArray[np.uint8]]) -> Iterator[Sequence[NDArray[np.uint8]]]:
        for image in images_bgr:
            check_image(image)
        if len({image.shape for image in images_bgr}) > 1:
            raise ValueError("a batch must hold images of one size")
        for start in range(0, len(images_bgr), self.batch_size):
            yield images_bgr[start : start + self.batch_size]

    def _placement(self, image_hw: tuple[int, int], scale: float) -> Placement:
        return place(image_hw, input_size=round(self._input_size * scale), cell_px=CELL_PX, resize=self._resize)

    def _embed(self, images_bgr: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Return the embeddings [B, Ht*Wt, D] of a batch, of all scales side by side."""
        image_hw = images_bgr[0].shape[:2]
        placements = [self._placement(image_hw, scale) for scale in self._scales]
        parts = []
        for placement in placements:
            part = self._engine.embed(_network_input(images_bgr, placement.input_hw))
            parts.append(_to_grid(part, placement.grid_hw, placements[0].grid_hw))
            self._warm_input_hw |= {placement.input_hw}
        embeddings = parts[0]
        if len(parts) > 1:
            joined = np.concatenate(parts, axis=-1)
            embeddings = joined / np.maximum(np.linalg.norm(joined, axis=-1, keepdims=True), 1e-12)
        self._check_finite(bool(np.isfinite(embeddings).all()))
        return embeddings

    def _check_finite(self, is_finite: bool) -> None:
        if not is_finite:
            raise FloatingPointError(f"{self.name} in {self.precision} gave embeddings that are not finite")


def _network_input(images_bgr: Sequence[NDArray[np.uint8]], input_hw: tuple[int, int]) -> NDArray[np.uint8]:
    return np.stack([to_input(image, input_hw) for image in images_bgr])


def to_input(image_bgr: NDArray[np.uint8], input_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a whole image [H, W, 3] uint8, BGR, at the network's size (h, w): [h, w, 3] uint8, RGB.

    Bicubic, antialiased, rounded to uint8 as timm's transforms do.
    """
    image_rgb = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2RGB)
    if image_rgb.shape[:2] == input_hw:
        return image_rgb.astype(np.uint8, copy=False)
    import torch
    from torch.nn.functional import interpolate

    # OpenCV has no antialiased bicubic. The channels-last view makes PyTorch take its vectorised path for uint8.
    pixels = torch.from_numpy(image_rgb).permute(2, 0, 1).unsqueeze(0)
    resized = interpolate(pixels, size=input_hw, mode="bicubic", antialias=True, align_corners=False)
    # It comes back plane by plane; to interleave the planes with numpy takes longer than the resampling did.
    return np.asarray(cv2.merge([*resized[0].numpy()]), dtype=np.uint8)


def _to_grid(embeddings: NDArray[np.float32], from_hw: tuple[int, int], to_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Return embeddings [B, N, D] of one grid brought to another, bilinear between cell centres."""
    if from_hw == to_hw:
        return embeddings
    import torch
    from torch.nn.functional import interpolate

    batch, _, width = embeddings.shape
    grids = torch.from_numpy(embeddings).view(batch, *from_hw, width).permute(0, 3, 1, 2)
    resampled = interpolate(grids, size=to_hw, mode="bilinear", align_corners=False)
    return np.asarray(resampled.permute(0, 2, 3, 1).flatten(1, 2))


def _public_name(model_name: str) -> str:
    parts = re.fullmatch(r"vit_(small|base|large|giant)_patch14_(reg4_)?dinov2\.lvd142m", model_name)
    if parts is None:
        raise ValueError(f"model_name must name a DINOv2 network of timm, got {model_name!r}")
    return f"dinov2-vit-{parts[1][0]}{'-reg4' if parts[2] else ''}/14"
