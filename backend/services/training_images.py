"""The images of a fit on their way into a memory: uploaded or stored, each decoded once at most, with embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from backend.artifacts.formats import LearnedFacts
from backend.artifacts.image_store import ImageStore
from backend.artifacts.stored_image import StoredImage, safe_stem
from backend.errors import ArtefactCorrupt
from backend.extractors.base import FeatureExtractor, embeddings_key
from backend.extractors.extraction import Extraction
from backend.imaging.image_codec import decode_image, image_size, image_suffix, pixel_digest
from backend.imaging.placement import Placement
from backend.memory_bank.bank import MemoryBank, PatchGrid
from backend.memory_bank.learning import learn
from backend.memory_bank.whitening import fit_whitening
from backend.roi_mask import Shape, scale_shape, shape_fields, shape_from_fields, shape_mask
from backend.services.consistency import check_aspect_ratio, check_same_scale
from backend.services.fit_request import FitProgress, FitRequest, Upload
from backend.utils import Stopwatch, sha256_hex


@dataclass(frozen=True, kw_only=True)
class TrainingImage:
    """One image on its way into a memory; ``data`` is None when the store has it already."""

    digest: str
    part_id: str
    grid: PatchGrid
    name: str = ""
    data: bytes | None = None


class TrainingImages:
    """Gathers the images of one fit and extracts the embeddings that are missing.

    Args:
        images: Where images and embeddings are kept.
        extractor: Makes the embeddings.
        extraction: Brings images to the device; between its batches inspections get their turn.
        max_pixels: Largest image, px.
        watch: Gets the laps ``decode`` and ``extract``.
    """

    def __init__(
        self,
        images: ImageStore,
        extractor: FeatureExtractor,
        extraction: Extraction,
        *,
        max_pixels: int,
        watch: Stopwatch,
    ) -> None:
        self._images = images
        self._extractor = extractor
        self._extraction = extraction
        self._max_pixels = max_pixels
        self._watch = watch
        self._made_by = embeddings_key(extractor)

    def placements(self, uploads: Sequence[Upload]) -> list[Placement]:
        """Return how uploads are brought to the grid, from their headers: nothing is decoded.

        Raises:
            BadImage, TooLarge: If one cannot be used; the sentence names it.
            AspectRatioMismatch: If one is unlike the first.
        """
        found = [
            self._extractor.placement(image_size(upload.data, max_pixels=self._max_pixels, name=upload.name))
            for upload in uploads
        ]
        for upload, placement in zip(uploads, found, strict=True):
            check_aspect_ratio(found[0], placement, upload.name)
        return found

    def placement_of(self, image: StoredImage) -> Placement:
        """Return how a stored image is brought to the grid.

        Raises:
            ArtefactCorrupt: If nobody knows its size any more.
        """
        if image.is_damaged:
            raise ArtefactCorrupt(f"The stored image {image.file_name!r} is damaged. Upload it again, or delete it.")
        return self._extractor.placement(image.image_hw)

    def of_uploads(self, uploads: Sequence[Upload], progress: FitProgress) -> dict[str, TrainingImage]:
        """Return uploads by digest; one that comes twice is extracted once.

        Raises:
            BadImage: If one cannot be decoded; the sentence names it.
        """
        by_digest: dict[str, tuple[Upload, Placement]] = {}
        part_ids: dict[str, str] = {}

        def decoded() -> Iterator[tuple[str, Callable[[], NDArray[np.uint8]]]]:
            for upload in uploads:
                with self._watch.lap("decode"):
                    image = decode_image(upload.data, max_pixels=self._max_pixels, name=upload.name)
                    digest = pixel_digest(image)
                by_digest[digest] = upload, self._extractor.placement((image.shape[0], image.shape[1]))
                if upload.part_id:
                    part_ids[digest] = upload.part_id
                yield digest, partial(_same, image)

        rows = self._load_or_extract(decoded(), progress, keep=False)
        return {
            digest: TrainingImage(
                digest=digest,
                part_id=part_ids.get(digest, digest),
                grid=self._grid(rows[digest], placement),
                name=upload.name,
                data=upload.data,
            )
            for digest, (upload, placement) in by_digest.items()
        }

    def of_stored(
        self,
        stored: Sequence[StoredImage],
        first: Placement,
        *,
        mm_per_px: float | None = None,
        progress: FitProgress | None = None,
    ) -> dict[str, TrainingImage]:
        """Return stored images by digest; embeddings that were missing are kept.

        Args:
            stored: The images.
            first: The placement that all must agree with.
            mm_per_px: The scale that all must have been stored with; None for whatever it was.
            progress: Counts them.

        Raises:
            AspectRatioMismatch, MmPerPxMismatch: If one does not agree.
            ArtefactCorrupt, NotFound: If one is damaged or gone; the sentence names it.
        """
        for image in stored:
            check_aspect_ratio(first, self.placement_of(image), image.file_name)
            if mm_per_px is not None:
                check_same_scale(mm_per_px, image.mm_per_px, image.file_name)
        sources = ((image.digest, partial(self._decoded, image)) for image in stored)
        rows = self._load_or_extract(sources, progress, keep=True)
        return {
            image.digest: TrainingImage(
                digest=image.digest,
                part_id=image.part_id,
                grid=self._grid(rows[image.digest], self.placement_of(image)),
            )
            for image in stored
        }

    def keep(self, uploaded: Mapping[str, TrainingImage], mm_per_px: float) -> dict[str, TrainingImage]:
        """Store uploads, and return them by digest with the parts that the store knows them by."""
        return {digest: self._kept(image, mm_per_px) for digest, image in uploaded.items()}

    def _kept(self, image: TrainingImage, mm_per_px: float) -> TrainingImage:
        if image.data is None:
            return image
        self._images.put_embeddings(image.digest, self._made_by, image.grid.embeddings)
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
        return replace(image, part_id=self._images.put(stored, image.data).part_id)

    def _load_or_extract(
        self,
        sources: Iterable[tuple[str, Callable[[], NDArray[np.uint8]]]],
        progress: FitProgress | None,
        *,
        keep: bool,
    ) -> dict[str, NDArray[np.float32]]:
        """Return the rows [N, D] of images by digest, from the store or from the device in batches of one size.

        Args:
            sources: Digest of each image and what returns its pixels, asked only where rows are missing.
            progress: Counts the images.
            keep: Store what was extracted, for images that the store holds.
        """
        rows: dict[str, NDArray[np.float32]] = {}
        batch: dict[str, NDArray[np.uint8]] = {}

        def extract() -> None:
            if not batch:
                return
            with self._watch.lap("extract"):
                extracted = self._extraction.learn(self._extractor, list(batch.values()))
            for digest, embeddings in zip(batch, extracted, strict=True):
                rows[digest] = embeddings
                if keep:
                    self._images.put_embeddings(digest, self._made_by, embeddings)
                count()
            batch.clear()

        def count() -> None:
            if progress is not None:
                progress.image_done()

        for digest, pixels in sources:
            if digest not in rows and digest not in batch:
                stored = self._images.get_embeddings(digest, self._made_by)
                if stored is None:
                    image = pixels()
                    if batch and next(iter(batch.values())).shape != image.shape:
                        extract()
                    batch[digest] = image
                    if len(batch) == self._extractor.batch_size:
                        extract()
                    continue
                rows[digest] = stored
            count()
        extract()
        return rows

    def _decoded(self, image: StoredImage) -> NDArray[np.uint8]:
        return decode_image(self._images.read(image), max_pixels=self._max_pixels, name=image.file_name)

    def _grid(self, rows: NDArray[np.float32], placement: Placement) -> PatchGrid:
        return PatchGrid(embeddings=rows, placement=placement, extractor_id=self._extractor.extractor_id)


def memory_of(
    images: Mapping[str, TrainingImage],
    known: MemoryBank | LearnedFacts | None,
    request: FitRequest,
    extractor: FeatureExtractor,
    upload_hw: tuple[int, int],
    progress: FitProgress,
) -> MemoryBank:
    """Return the memory of images by digest, with the shape that is asked for or the one that was learned before.

    Raises:
        ShapeOutsideImage: If the shape covers no pixel.
    """
    first = images[min(images)].grid.placement
    shape: Shape | None = None
    if request.shape is not None:
        shape = scale_shape(request.shape, upload_hw, first.image_hw)
    elif known is not None and known.shape is not None:
        shape = scale_shape(shape_from_fields(known.shape), known.placement.image_hw, first.image_hw)
    mask_cells = first.cell_coverage(shape_mask(shape, first.image_hw)).reshape(-1) > 0
    whitening = None
    if extractor.whitens:
        rows = [images[digest].grid.embeddings[mask_cells] for digest in sorted(images)]
        whitening = fit_whitening(np.concatenate(rows))
    return learn(
        {digest: image.grid for digest, image in images.items()},
        part_ids={digest: image.part_id for digest, image in images.items()},
        mask_cells=mask_cells,
        shape=None if shape is None else shape_fields(shape),
        whitening=whitening,
        options=request.options,
        mm_per_px=request.mm_per_px if known is None else known.mm_per_px,
        precision=extractor.precision,
        progress=progress.picks,
    )


def _same(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return image
