"""Images on their way into a memory: uploaded or stored, with their embeddings; and the memory that is made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from backend.artifacts.formats import LearnedFacts
from backend.artifacts.image_store import ImageStore
from backend.artifacts.stored_image import StoredImage, safe_stem
from backend.errors import ArtefactCorrupt
from backend.extractors.base import FeatureExtractor
from backend.extractors.extraction import Extraction
from backend.imaging.image_codec import decode_image, image_suffix, pixel_digest
from backend.imaging.placement import Placement
from backend.memory_bank.coreset import Progress
from backend.memory_bank.whitening import fit_whitening
from backend.patchcore import MemoryBank, PatchGrid, learn
from backend.roi_mask import Shape, scale_shape, shape_fields, shape_from_fields, shape_mask
from backend.services.consistency import check_aspect_ratio, check_same_scale
from backend.services.embedding_rows import EmbeddingRows
from backend.services.fit_request import FitRequest, Upload
from backend.utils import sha256_hex


@dataclass(frozen=True, kw_only=True)
class Learnable:
    """One image on its way into a memory; ``data`` is None when the store has it already."""

    digest: str
    part_id: str
    grid: PatchGrid
    name: str = ""
    data: bytes | None = None


class Learnables:
    """Gathers the images that a fit learns, and extracts the embeddings that are missing."""

    def __init__(self, extraction: Extraction, *, max_pixels: int) -> None:
        self._rows = EmbeddingRows(extraction, max_pixels=max_pixels)
        self._max_pixels = max_pixels

    def identify(self, upload: Upload, extractor: FeatureExtractor) -> tuple[str, Placement]:
        """Return an upload's digest and how it is brought to the grid.

        Raises:
            BadImage, TooLarge: If it cannot be used.
        """
        image = decode_image(upload.data, max_pixels=self._max_pixels, name=upload.name)
        return pixel_digest(image), extractor.placement((image.shape[0], image.shape[1]))

    def of_uploads(
        self,
        images: ImageStore,
        identified: Sequence[tuple[Upload, str, Placement]],
        extractor: FeatureExtractor,
        progress: Progress | None,
    ) -> dict[str, Learnable]:
        """Return uploads, as ``identify`` found them, by digest; one that comes twice is extracted once."""
        sources = {digest: (upload.name, partial(_data_of, upload)) for upload, digest, _ in identified}
        parts = {digest: upload.part_id for upload, digest, _ in identified if upload.part_id}
        rows = self._rows.of(images, sources, extractor, progress, keep=False)
        return {
            digest: Learnable(
                digest=digest,
                part_id=parts.get(digest, digest),
                grid=PatchGrid(embeddings=rows[digest], placement=placement, extractor_id=extractor.extractor_id),
                name=upload.name,
                data=upload.data,
            )
            for upload, digest, placement in identified
        }

    def of_stored(
        self,
        images: ImageStore,
        stored: Sequence[StoredImage],
        request: FitRequest,
        first: Placement,
        extractor: FeatureExtractor,
        progress: Progress | None,
    ) -> dict[str, Learnable]:
        """Return stored images by digest; the embeddings that were missing are kept.

        Raises:
            AspectRatioMismatch, MmPerPxMismatch: If one is unlike the first image of the fit.
            ArtefactCorrupt, NotFound: If one is damaged or gone; the sentence names it.
        """
        for image in stored:
            check_aspect_ratio(first, placement_of(extractor, image), image.file_name)
            if request.use_dataset:
                check_same_scale(request.mm_per_px, image.mm_per_px, image.file_name)
        sources = {image.digest: (image.file_name, partial(images.read, image)) for image in stored}
        rows = self._rows.of(images, sources, extractor, progress, keep=True)
        learnables = {}
        for image in stored:
            grid = PatchGrid(
                embeddings=rows[image.digest],
                placement=placement_of(extractor, image),
                extractor_id=extractor.extractor_id,
            )
            learnables[image.digest] = Learnable(digest=image.digest, part_id=image.part_id, grid=grid)
        return learnables


def _data_of(upload: Upload) -> bytes:
    return upload.data


def placement_of(extractor: FeatureExtractor, image: StoredImage) -> Placement:
    """Return how a stored image is brought to the grid.

    Raises:
        ArtefactCorrupt: If nobody knows its size any more.
    """
    if image.is_damaged:
        raise ArtefactCorrupt(f"The stored image {image.file_name!r} is damaged. Upload it again, or delete it.")
    return extractor.placement(image.image_hw)


def keep(images: ImageStore, fresh: Iterable[Learnable], mm_per_px: float, made_by: str) -> dict[str, Learnable]:
    """Store uploads, and return them by digest with the parts that the store knows them by."""
    kept = {}
    for image in fresh:
        if image.data is not None:
            images.put_embeddings(image.digest, made_by, image.grid.embeddings)
            stored = StoredImage(
                digest=image.digest,
                label="ok",
                name=safe_stem(image.name),
                part_id=image.part_id,
                image_hw=image.grid.placement.image_hw,
                mm_per_px=mm_per_px,
                bytes_sha256=sha256_hex(image.data),
                suffix=image_suffix(image.data),
            )
            kept[image.digest] = replace(image, part_id=images.put(stored, image.data).part_id)
    return kept


def memory_of(
    learnables: Mapping[str, Learnable],
    known: MemoryBank | LearnedFacts | None,
    request: FitRequest,
    extractor: FeatureExtractor,
    upload_hw: tuple[int, int],
    progress: Progress,
) -> MemoryBank:
    """Return the memory of images by digest, with the shape that is asked for or the one that was learned before.

    Raises:
        ShapeOutsideImage: If the shape covers no pixel.
    """
    first = learnables[min(learnables)].grid.placement
    shape: Shape | None = None
    if request.shape is not None:
        shape = scale_shape(request.shape, upload_hw, first.image_hw)
    elif known is not None and known.shape is not None:
        shape = scale_shape(shape_from_fields(known.shape), known.placement.image_hw, first.image_hw)
    mask_cells = first.cell_coverage(shape_mask(shape, first.image_hw)).reshape(-1) > 0
    whitening = None
    if extractor.whitens:
        rows = [learnables[digest].grid.embeddings[mask_cells] for digest in sorted(learnables)]
        whitening = fit_whitening(np.concatenate(rows))
    return learn(
        {digest: image.grid for digest, image in learnables.items()},
        part_ids={digest: image.part_id for digest, image in learnables.items()},
        mask_cells=mask_cells,
        shape=None if shape is None else shape_fields(shape),
        whitening=whitening,
        coreset_rate=request.coreset_rate,
        seed=request.seed,
        k=request.k,
        mm_per_px=request.mm_per_px if known is None else known.mm_per_px,
        precision=extractor.precision,
        progress=progress,
    )
