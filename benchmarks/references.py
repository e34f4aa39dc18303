"""The plain implementations that the service's own are measured against, and an inspection service made of them.

- extraction: timm's network in PyTorch, float32, eager, with timm's way of bringing an image to it;
- coreset: the greedy as its definition reads (``backend.memory_bank.coreset.kcenter_greedy_reference``);
- nearest neighbours: FAISS ``IndexFlatL2``, and for small memories four lines of numpy.

``reference_app`` serves ``/fit_ok`` and ``/infer`` with the first three. All else is the service's own code, so that a
ratio between the two servers tells of these three and of what the real service does beyond them: store, lock, check.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import faiss
import numpy as np
import torch
from fastapi import FastAPI, File, Form, Request, UploadFile
from numpy.typing import NDArray
from PIL import Image

from backend.calib import ScoreRule
from backend.extractors.weights import WeightsFile, load_backbone
from backend.imaging.image_codec import encode_png
from backend.imaging.placement import Placement, place
from backend.memory_bank.coreset import coreset_size, kcenter_greedy_reference
from backend.scoring.anomaly_map import anomaly_map, heatmap
from backend.scoring.image_score import image_score
from backend.scoring.regions import find_regions
from backend.settings import Settings
from benchmarks.seeded_weights import MODEL_NAME, PATCH_PX

LAYERS = (9, 11)


class TorchEagerExtractor:
    """timm's network in PyTorch, float32, eager.

    Args:
        weights: A weights file.
        device: ``cpu`` or ``cuda:N``.
        input_size: Edge of the network input, px; rounded down to a multiple of 14.
    """

    def __init__(self, weights: Path, *, device: str = "cpu", input_size: int = 384) -> None:
        self._device = torch.device(device)
        self._input_size = input_size
        backbone: Any = load_backbone(MODEL_NAME, WeightsFile(path=weights, origin="file"))
        self._backbone = backbone.to(self._device)
        statistics = [torch.tensor(backbone.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std")]
        self._mean, self._std = (value.to(self._device) for value in statistics)

    def placement(self, image_hw: tuple[int, int]) -> Placement:
        """Return how an image of this size is brought to the patch grid."""
        return place(image_hw, input_size=self._input_size, cell_px=PATCH_PX)

    def extract(self, image_bgr: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the unit rows [Ht*Wt, D] float32 of an image [H, W, 3] uint8, BGR."""
        height, width = self.placement((image_bgr.shape[0], image_bgr.shape[1])).input_hw
        image = Image.fromarray(cv2.cvtColor(image_bgr, cv2.COLOR_BGR2RGB))
        resized = np.array(image.resize((width, height), Image.Resampling.BICUBIC))
        pixels = torch.from_numpy(resized).to(self._device).permute(2, 0, 1).unsqueeze(0).float() / 255
        with torch.inference_mode():
            tokens = self._backbone.forward_intermediates(
                (pixels - self._mean) / self._std,
                indices=list(LAYERS),
                norm=True,
                output_fmt="NLC",
                intermediates_only=True,
            )
            rows: NDArray[np.float32] = torch.nn.functional.normalize(torch.cat(tokens, -1), dim=-1)[0].cpu().numpy()
        return rows


class FaissFlat:
    """FAISS's exact index over vectors [M, D] float32."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self._index = faiss.IndexFlatL2(vectors.shape[1])
        self._index.add(np.ascontiguousarray(vectors))

    def search(self, query: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the distance [N] float32 (not squared) and the index [N] int64 of the nearest vector of each query."""
        squares, indices = self._index.search(query, 1)
        return np.sqrt(squares[:, 0].clip(min=0)), indices[:, 0]


class PlainNearest:
    """The nearest of vectors [M, D] float32 by one product, measured again from its difference."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self._vectors = vectors
        self._half_squared_norms = 0.5 * np.einsum("md,md->m", vectors, vectors)

    def search(self, query: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the distance [N] float32 and the index [N] int64 of the nearest vector of each query."""
        products = query @ self._vectors.T
        products -= self._half_squared_norms
        indices = products.argmax(axis=1)
        return np.linalg.norm(query - self._vectors[indices], axis=1), indices


@dataclass(frozen=True, kw_only=True)
class ReferenceRoi:
    """What the reference has learned of a ROI: its vectors [M, D], the index over them, and the threshold."""

    vectors: NDArray[np.float32]
    index: FaissFlat
    n_embeddings: int
    threshold: float


def learn_reference(
    extractor: TorchEagerExtractor,
    images_bgr: Sequence[NDArray[np.uint8]],
    *,
    coreset_rate: float,
    seed: int,
    score: Score,
) -> ReferenceRoi:
    """Return what is learned of good images, with the largest of their leave-one-image-out scores as the threshold."""
    rows_by_image = [extractor.extract(image) for image in images_bgr]
    rows = np.concatenate(rows_by_image)
    picks = kcenter_greedy_reference(rows, coreset_size(len(rows), coreset_rate), seed=seed)
    vectors = np.ascontiguousarray(rows[picks])
    source = picks // len(rows_by_image[0])
    scores = [0.0]
    for number, (image, own_rows) in enumerate(zip(images_bgr, rows_by_image, strict=True)):
        others = vectors[source != number]
        if len(others):
            distances, _ = FaissFlat(others).search(own_rows)
            scores.append(score(distances, extractor.placement((image.shape[0], image.shape[1])))[1])
    return ReferenceRoi(vectors=vectors, index=FaissFlat(vectors), n_embeddings=len(rows), threshold=max(scores))


class Score:
    """From distances to a map and an image score, as the settings say."""

    def __init__(self, settings: Settings) -> None:
        self._rule = ScoreRule(
            mode="percentile",
            percentile=settings.score_percentile,
            blur_sigma=settings.blur_sigma,
            area_mm2_thr=settings.area_mm2_thr,
        )

    def __call__(self, distances: NDArray[np.float32], placement: Placement) -> tuple[NDArray[np.float32], float]:
        """Return the anomaly map [H, W] float32 and its percentile for the distances [Ht*Wt] of an image."""
        whole = np.ones(placement.image_hw, dtype=np.bool_)
        image_map = anomaly_map(distances, placement, whole, blur_sigma=self._rule.blur_sigma)
        return image_map, image_score(image_map, whole, self._rule, mm_per_px=1.0)


def reference_app() -> FastAPI:
    """Return the reference service; it reads the service's own settings and keeps what it learns in memory."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.settings = settings = Settings()
        if settings.weights is None:
            raise ValueError("the reference needs BDI_WEIGHTS")
        device = "cpu" if settings.device == "auto" else settings.device
        app.state.extractor = TorchEagerExtractor(settings.weights, device=device, input_size=settings.input_size)
        app.state.extractor.extract(np.zeros((settings.input_size, settings.input_size, 3), np.uint8))
        app.state.rois = {}
        yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/fit_ok")
    def fit_ok(
        request: Request, roi_id: Annotated[str, Form()], images: Annotated[list[UploadFile], File()]
    ) -> dict[str, Any]:
        state, settings = request.app.state, request.app.state.settings
        roi = learn_reference(
            state.extractor,
            [_decode(image.file.read()) for image in images],
            coreset_rate=settings.coreset_rate,
            seed=settings.seed,
            score=Score(settings),
        )
        state.rois[roi_id] = roi
        return {"n_embeddings": roi.n_embeddings, "coreset_size": len(roi.vectors), "threshold": roi.threshold}

    @app.post("/infer")
    def infer(
        request: Request,
        roi_id: Annotated[str, Form()],
        mm_per_px: Annotated[float, Form()],
        image: Annotated[UploadFile, File()],
    ) -> dict[str, Any]:
        state = request.app.state
        roi, pixels = state.rois[roi_id], _decode(image.file.read())
        distances, _ = roi.index.search(state.extractor.extract(pixels))
        placement = state.extractor.placement((pixels.shape[0], pixels.shape[1]))
        image_map, score = Score(state.settings)(distances, placement)
        regions = find_regions(
            image_map,
            np.ones(placement.image_hw, dtype=np.bool_),
            threshold=roi.threshold,
            area_mm2_thr=state.settings.area_mm2_thr,
            mm_per_px=mm_per_px,
        )
        return {
            "score": score,
            "threshold": roi.threshold,
            "heatmap_png_base64": base64.b64encode(encode_png(heatmap(image_map, 2 * roi.threshold))).decode(),
            "regions": [{"bbox": region.bbox_xywh_px, "contour": region.contour_xy} for region in regions],
        }

    return app


def _decode(data: bytes) -> NDArray[np.uint8]:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise ValueError("not an image")
    return np.asarray(pixels, dtype=np.uint8)
