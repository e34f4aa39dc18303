"""The images of a fit on their way into a memory: uploaded or stored, each decoded once at most, with embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from backend.artifacts.formats import LearnedFacts
from backend.artifacts.image_store import ImageStore
from backend.artifacts.stored_image import StoredImage, safe_stem
from backend.errors import ArtefactCorrupt
from backend.extractors.base import FeatureExtractor, embeddings_key
from backend.extractors.extraction import Extraction
from backend.imaging.image_codec import decode_image, image_size, image_suffix, pixel_digest
from backend.imaging.pixel_budget import IN_FLIGHT
from backend.imaging.placement import Placement
from backend.imaging.position_map import position_map
from backend.memory_bank.bank import MemoryBank, PatchGrid
from backend.services.consistency import PhysicalSize, check_aspect_ratio, on_fitted_grid, scale_of_image
from backend.services.fit_request import FitProgress, Upload
from backend.utils import Stopwatch, sha256_hex


@dataclass(frozen=True, kw_only=True)
class TrainingImage:
    """One image on its way into a memory; with its file's name and bytes where it is an upload."""

    part_id: str
    grid: PatchGrid
    position_map: NDArray[np.float16]
    name: str = ""
    data: bytes = b""


@dataclass(frozen=True, kw_only=True)
class TrainingImages:
    """Gathers the images of one fit, and makes the embeddings and position maps that are missing.

    Attributes:
        images: Where images and embeddings are kept.
        extractor: Makes the embeddings.
        extraction: Brings images to the device; between its batches inspections get their turn.
        progress: Counts the images.
        max_pixels: Largest image, px.
        watch: Gets the laps ``decode`` and ``extract``.
        position_maps: Those at hand, [cells, 4] float16 by digest; for another one its image is decoded.
        warnings: What was noticed about the images' sizes, each once.
    """

    images: ImageStore
    extractor: FeatureExtractor
    extraction: Extraction
    progress: FitProgress
    max_pixels: int
    watch: Stopwatch
    position_maps: dict[str, NDArray[np.float16]] = field(default_factory=dict)
    warnings: dict[str, None] = field(default_factory=dict)

    def know(self, memory: MemoryBank | LearnedFacts | None) -> None:
        """Take the position maps of the images that a memory has learned, if it is there and whole."""
        if isinstance(memory, MemoryBank):
            self.position_maps.update(zip(memory.image_digests, memory.position_maps, strict=True))

    def placements(self, uploads: Sequence[Upload]) -> list[Placement]:
        """Return how uploads are brought to the grid, from their headers: nothing is decoded.

        Raises:
            BadImage, TooLarge: If one cannot be used; the sentence names it.
            AspectRatioMismatch: If one is unlike the first.
        """
        found = [
            self.extractor.placement(image_size(upload.data, max_pixels=self.max_pixels, name=upload.name))
            for upload in uploads
        ]
        for upload, placement in zip(uploads, found, strict=True):
            check_aspect_ratio(found[0], placement.image_hw, upload.name)
        return found

    def check_sizes(self, uploads: Sequence[Upload], fitted: PhysicalSize, mm_per_px: float) -> None:
        """Note the uploads that are resized; raises MmPerPxMismatch if one agrees neither in scale nor in size."""
        for upload in uploads:
            image_hw = image_size(upload.data, max_pixels=self.max_pixels, name=upload.name)
            self._check_size(fitted, image_hw, mm_per_px, upload.name)

    def _check_size(self, fitted: PhysicalSize, image_hw: tuple[int, int], mm_per_px: float, name: str) -> None:
        scale = scale_of_image(fitted, PhysicalSize(image_hw=image_hw, mm_per_px=mm_per_px), name)
        if scale.warning is not None:
            self.warnings[scale.warning] = None

    def placement_of(self, image: StoredImage) -> Placement:
        """Return how a stored image is brought to the grid; raises ArtefactCorrupt if nobody knows its size."""
        if image.is_damaged:
            raise ArtefactCorrupt(f"The stored image {image.file_name!r} is damaged. Upload it again, or delete it.")
        return self.extractor.placement(image.image_hw)

    def of_uploads(self, uploads: Sequence[Upload], fitted: Placement) -> dict[str, TrainingImage]:
        """Return uploads by digest on the grid of ``fitted``; one that comes twice is extracted once.

        Raises:
            BadImage: If one cannot be decoded; the sentence names it.
            AspectRatioMismatch: If one is unlike ``fitted``.
        """
        by_digest: dict[str, Upload] = {}
        part_ids: dict[str, str] = {}

        def decoded() -> Iterator[tuple[str, NDArray[np.uint8]]]:
            for upload in uploads:
                with self.watch.lap("decode"):
                    image = decode_image(upload.data, max_pixels=self.max_pixels, name=upload.name)
                    digest = pixel_digest(image)
                check_aspect_ratio(fitted, (image.shape[0], image.shape[1]), upload.name)
                by_digest[digest] = upload
                if upload.part_id:
                    part_ids[digest] = normalize("NFC", upload.part_id)
                yield digest, image
                del image  # before the next is decoded: there may be room for one only

        grids = self._load_or_extract(decoded(), fitted)
        return {
            digest: TrainingImage(
                part_id=part_ids.get(digest, digest),
                grid=grids[digest],
                position_map=self.position_maps[digest],
                name=upload.name,
                data=upload.data,
            )
            for digest, upload in by_digest.items()
        }

    def of_stored(
        self, stored: Sequence[StoredImage], first: Placement, *, size: PhysicalSize | None = None
    ) -> dict[str, TrainingImage]:
        """Return stored images by digest; embeddings that were missing are kept.

        Args:
            stored: The images.
            first: The placement that all must agree with; its grid is that of all.
            size: The physical size that all must agree with; None for whatever it was.

        Raises:
            AspectRatioMismatch, MmPerPxMismatch: If one does not agree.
            ArtefactCorrupt, NotFound: If one is damaged or gone; the sentence names it.
        """
        for image in stored:
            check_aspect_ratio(first, self.placement_of(image).image_hw, image.file_name)
            if size is not None:
                self._check_size(size, image.image_hw, image.mm_per_px or size.mm_per_px, image.file_name)
        grids = self._load_or_extract(((image.digest, image) for image in stored), first)
        return {
            image.digest: TrainingImage(
                part_id=image.part_id, grid=grids[image.digest], position_map=self.position_maps[image.digest]
            )
            for image in stored
        }

    def keep(self, digest: str, image: TrainingImage, mm_per_px: float) -> TrainingImage:
        """Store an upload, and return it with the part that the store knows it by."""
        self.images.put_embeddings(digest, embeddings_key(self.extractor), image.grid.embeddings)
        stored = StoredImage(
            digest=digest,
            label="ok",
            name=safe_stem(image.name),
            part_id=image.part_id,
            image_hw=image.grid.placement.image_hw,
            mm_per_px=mm_per_px,
            bytes_sha256=sha256_hex(image.data),
            suffix=image_suffix(image.data),
            is_of_dataset=False,
        )
        return replace(image, part_id=self.images.put(stored, image.data).part_id)

    def _load_or_extract(
        self, sources: Iterable[tuple[str, NDArray[np.uint8] | StoredImage]], fitted: Placement
    ) -> dict[str, PatchGrid]:
        """Return the grids of images by digest, from the store or from the device in batches of one size.

        Afterwards their position maps are at hand, too.

        Args:
            sources: Digest of each image, and its pixels or, to be read only where something is missing, its facts.
                What is extracted of an image that the store holds is kept there.
            fitted: Has the grid that all are brought to.
        """
        n_cells = fitted.grid_hw[0] * fitted.grid_hw[1]
        made_by = embeddings_key(self.extractor)
        grids: dict[str, PatchGrid] = {}
        batch: dict[str, NDArray[np.uint8]] = {}
        in_store: set[str] = set()

        def add(digest: str, rows: NDArray[np.float32], image_hw: tuple[int, int]) -> None:
            placement = replace(fitted, image_hw=image_hw)
            grids[digest] = PatchGrid(embeddings=rows, placement=placement, extractor_id=self.extractor.extractor_id)
            self.progress.image_done()

        def extract() -> None:
            with self.watch.lap("extract"):
                images = [on_fitted_grid(image, self.extractor, fitted) for image in batch.values()]
                extracted = self.extraction.learn(self.extractor, images)
            for (digest, image), rows in zip(batch.items(), extracted, strict=True):
                if digest in in_store:
                    self.images.put_embeddings(digest, made_by, rows)
                add(digest, rows, (image.shape[0], image.shape[1]))
            batch.clear()

        for digest, source in sources:
            if digest in grids or digest in batch:
                del source
                self.progress.image_done()
                continue
            rows = self.images.get_embeddings(digest, made_by)
            if rows is not None and len(rows) != n_cells:
                rows = None  # made for another ROI's grid, or before this one was fitted anew
            if isinstance(source, StoredImage):
                if rows is not None and digest in self.position_maps:
                    add(digest, rows, source.image_hw)
                    continue
                in_store.add(digest)
                with self.watch.lap("decode"):
                    source = decode_image(self.images.read(source), max_pixels=self.max_pixels, name=source.file_name)
            if digest not in self.position_maps:
                with self.watch.lap("position"):
                    self.position_maps[digest] = position_map(source)
            if rows is not None:
                add(digest, rows, (source.shape[0], source.shape[1]))
                del source
                continue
            if batch and next(iter(batch.values())).shape != source.shape:
                extract()
            batch[digest] = source
            n_pixels = len(batch) * source.shape[0] * source.shape[1]
            del source
            if len(batch) == self.extractor.batch_size or 4 * n_pixels > IN_FLIGHT.max_pixels:
                extract()
        if batch:
            extract()
        return grids
