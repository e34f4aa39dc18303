"""The compute engine for processors: the network converted to OpenVINO, which multiplies in bf16 where it can.

The graph that runs is converted from the timm network, with normalisation, concatenation and unit rows inside; uint8
goes in. It is converted once, kept on disk under a digest, rebuilt when in doubt, and compiled for each input size,
which makes it some percent faster than a graph of open sizes (1.02 to 1.08 times).
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import nn

from backend.artifacts.files import scratch_folder, sync_tree
from backend.errors import Unavailable
from backend.extractors.base import CELL_PX, EngineName, EngineOrigin, Precision
from backend.extractors.embedder import PatchEmbedder

logger = logging.getLogger(__name__)

MAX_COMPILED: Final = 8
"""How many input sizes stay compiled; each takes about 110 MB of memory for ViT-S in bf16."""

_FORMAT: Final = 3
"""Counts up when `_convert` makes another graph of the same network."""

_OPENVINO_TYPES: Final[dict[Precision, str]] = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_GRAPH_FILES: Final = ("model.xml", "model.bin")
_SUMS: Final = "SHA256SUMS"


class OpenVinoUnusable(Unavailable):
    """OpenVINO cannot be imported, or cannot convert the network."""


class OpenVinoEngine:
    """Runs the network with OpenVINO on the CPU.

    Args:
        embedder: The network, on the CPU.
        precision: ``auto`` takes what OpenVINO prefers on this processor: bf16 where it has instructions for it, else
            fp32.
        weights_digest: Names the weights in the cache.
        cache_dir: Where the converted graph is kept (ViT-S: 88 MB); None keeps nothing.
        threads: How many threads compute; None takes one per core.

    Raises:
        OpenVinoUnusable: If OpenVINO cannot be imported, or cannot convert the network.
        Unavailable: If this processor has not the precision.
    """

    name: EngineName = "openvino"
    origin: EngineOrigin = "converted"
    device = "cpu"
    batch_size = 1  # One image fills all cores; two or four at once take 1.0 to 1.17 times the time per image.

    def __init__(
        self,
        embedder: PatchEmbedder,
        *,
        precision: Precision | Literal["auto"] = "auto",
        weights_digest: str = "",
        cache_dir: Path | None = None,
        threads: int | None = None,
    ) -> None:
        self._openvino = _import_openvino()
        self._core = self._openvino.Core()
        self._core.set_property({"ENABLE_MMAP": False})  # A mapped file that somebody truncates ends the process.
        self.precision: Precision = self._resolve_precision(precision)
        self._config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": _OPENVINO_TYPES[self.precision],
            "INFERENCE_NUM_THREADS": threads or 0,
        }
        self._network = _OpenSizes(embedder).eval()
        self._graph = self._convert() if cache_dir is None else self._cached(cache_dir, weights_digest)
        self._request = lru_cache(MAX_COMPILED)(self._compiled)
        self._run_lock = threading.Lock()

    def embed(self, images_rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return patch embeddings [B, N, D] float32, unit rows, of images [B, h, w, 3] uint8.

        The first call with an input size compiles the network for it, which takes about a second.
        """
        request = self._request(images_rgb.shape[1:3])
        with self._run_lock:
            # The request's own memory, which the next image overwrites, is copied once, into what is handed out.
            found = np.empty((len(images_rgb), *request.get_output_tensor(0).shape[1:]), dtype=np.float32)
            for image, rows in zip(images_rgb, found, strict=True):
                rows[:] = request.infer({0: image[np.newaxis]}, share_inputs=True, share_outputs=True)[0][0]
            return found

    def _resolve_precision(self, precision: Precision | Literal["auto"]) -> Precision:
        if precision == "auto":
            preferred = self._core.get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
            return next((ours for ours, theirs in _OPENVINO_TYPES.items() if theirs == preferred), "fp32")
        # Asked for a type that it has not, OpenVINO would compute in another and say nothing.
        if precision.upper() not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise Unavailable(f"This processor does not compute in {precision}: set BDI_PRECISION to auto or fp32.")
        return precision

    def _compiled(self, input_hw: tuple[int, int]) -> Any:
        """Return an inference request for an input size."""
        positions = self._network.positions(input_hw)
        graph = self._graph.clone()
        graph.reshape({0: [1, *input_hw, 3], 1: list(positions.shape)})
        request = self._core.compile_model(graph, "CPU", self._config).create_infer_request()
        request.set_input_tensor(1, self._openvino.Tensor(positions.numpy()))
        return request

    def _convert(self) -> Any:
        """Return the network as an OpenVINO graph of open input size."""
        logger.info("converting the network to OpenVINO")
        example_hw = (2 * CELL_PX, 3 * CELL_PX)
        blank = torch.zeros((1, *example_hw, 3), dtype=torch.uint8)
        open_dim = torch.export.Dim.AUTO
        try:
            with torch.no_grad():
                program = torch.export.export(
                    self._network,
                    (blank, self._network.positions(example_hw)),
                    dynamic_shapes=({1: open_dim, 2: open_dim}, {1: open_dim}),
                )
            return self._openvino.convert_model(program)
        except Exception as error:  # Versions of three libraries meet here, each with errors of its own.
            logger.exception("cannot convert the network to OpenVINO")
            raise OpenVinoUnusable(
                "OpenVINO cannot convert the network: install the versions that requirements.txt names, or set "
                "BDI_ENGINE to torch."
            ) from error

    def _cached(self, cache_dir: Path, weights_digest: str) -> Any:
        """Return the graph from the cache, or a fresh one that the cache then has."""
        folder = cache_dir / f"openvino-{self._key(weights_digest)}"
        if folder.exists():
            try:
                if (folder / _SUMS).read_text() != _sums(folder):
                    raise ValueError("it does not match its digests")
                graph = self._core.read_model(folder / _GRAPH_FILES[0])
                self.origin = "read from cache"
                return graph
            except (OSError, ValueError, RuntimeError) as error:
                logger.warning("the converted network in %s is rebuilt: %s", folder, error)
                shutil.rmtree(folder, ignore_errors=True)
        graph = self._convert()
        try:
            self._keep(graph, folder)
        except (OSError, Unavailable) as error:
            # A full or read-only disk costs the next start some seconds, not this one.
            logger.warning("the converted network cannot be kept in %s: %s", folder, error)
        return graph

    def _keep(self, graph: Any, folder: Path) -> None:
        """Put a graph into its folder in one step, and delete those of other weights or versions."""
        with scratch_folder(folder.parent) as scratch:
            draft = scratch / "draft"
            draft.mkdir()
            self._openvino.save_model(graph, draft / _GRAPH_FILES[0], compress_to_fp16=False)
            (draft / _SUMS).write_text(_sums(draft))
            sync_tree(draft)
            draft.replace(folder)
        for other in folder.parent.glob("openvino-*"):
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)

    def _key(self, weights_digest: str) -> str:
        """Return 16 hex digits that name everything the graph depends on."""
        config: Any = self._network.embedder.backbone.pretrained_cfg
        facts = {
            "format": _FORMAT,
            "weights": weights_digest,
            "network": [config[fact] for fact in ("architecture", "mean", "std")],
            "layers": self._network.embedder.out_indices,
            "versions": [self._openvino.get_version(), timm.__version__, torch.__version__],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


class _OpenSizes(nn.Module):
    """A `PatchEmbedder` that gets its position embedding as an input, so that one conversion serves all input sizes.

    timm resamples the position embedding inside the network. OpenVINO has no exact counterpart of that operation
    (embeddings were off by 0.0015 with its own bicubic), and the size would have to be fixed before the conversion.
    """

    def __init__(self, embedder: PatchEmbedder) -> None:
        super().__init__()
        self.embedder = embedder

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
        for index, block in enumerate(backbone.blocks[: self.embedder.out_indices[-1] + 1]):
            tokens = block(tokens)
            if index in self.embedder.out_indices:
                taken.append(backbone.norm(tokens)[:, prefix:])
        return self.embedder.unit_rows(taken)


def _import_openvino() -> Any:
    # Importing OpenVINO reports the import and this machine's made-up id over the internet, and writes that id to the
    # home folder, unless its telemetry package is missing. Here it is: nothing leaves an inspection machine.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise OpenVinoUnusable(
            "The package openvino is not installed or does not load: install it, or set BDI_ENGINE to torch."
        ) from error
    return openvino


def _sums(folder: Path) -> str:
    """Return what ``sha256sum`` prints of the files of a graph."""
    return "".join(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in _GRAPH_FILES)
