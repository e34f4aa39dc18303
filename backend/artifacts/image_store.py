"""The learned images of a ROI, as uploaded, and their patch embeddings.

    images/<label>/<digest>.png           the original bytes, under the digest of their pixels
    images/<label>/<digest>.json          its name, part, mm_per_px, and the SHA-256 of the bytes
    embeddings/<extractor>/<digest>.npy   the extractor's rows, so that adding 5 images to 50 extracts 5

The facts hold a digest of themselves and come last: an image counts from the moment that they are there. Embeddings
are derived: one that is missing or does not match its digest is extracted again. An image whose facts are damaged stays
listed, as ``damaged-<digest>``: it can be read by nobody, but deleted, and an upload of it mends it.
"""

from __future__ import annotations

import io
import logging
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from backend.artifacts.array_files import arrays_from_bytes
from backend.artifacts.files import names_in, read_file
from backend.artifacts.layout import CORRUPT_MARK
from backend.artifacts.quarantine import set_aside_copies
from backend.artifacts.stored_image import FILE_NAME_DIGITS, Label, StoredImage, facts_bytes, facts_from_bytes
from backend.errors import ArtefactCorrupt, Conflict, InspectionError, NotFound
from backend.imaging.image_codec import SUFFIX_BY_FORMAT
from backend.utils import sha256_hex

_log = logging.getLogger(__name__)

DAMAGED_NAME = "damaged"

_DIGEST_BYTES = 32


class ImageStore:
    """The images and embeddings below one ROI's folder.

    Args:
        roi_folder: The folder.
        write: Writes a file durably.
        remove: Deletes files durably.
        found_damaged: Called with a damaged file, and what raises ValueError for its bytes.
    """

    def __init__(
        self,
        roi_folder: Path,
        *,
        write: Callable[[Path, bytes], None],
        remove: Callable[..., None],
        found_damaged: Callable[[Path, Callable[[bytes], object]], None],
    ) -> None:
        self._images = roi_folder / "images"
        self._embeddings = roi_folder / "embeddings"
        self._write, self._remove, self._found_damaged = write, remove, found_damaged
        self._new: list[StoredImage] = []

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Delete again what the ``with`` block has stored, if it fails. Hold the ROI's lock."""
        self._new = []
        try:
            yield
        except BaseException:
            try:
                for image in self._new:
                    self.delete([image.digest], image.label)
            except InspectionError:
                _log.exception("images of a call that failed are still stored")
            raise

    def keep(self) -> None:
        """Keep what the block of ``all_or_none`` has stored so far, whatever comes."""
        self._new = []

    def put(self, image: StoredImage, data: bytes) -> StoredImage:
        """Store an image's original bytes and facts, and return the facts.

        What is there under the same digest and label keeps its name and bytes; a part, a scale or metadata that come
        with the repeat take the place of the old ones. What is there but missing or damaged is stored anew. What was
        uploaded to the data set once stays of it, whatever fits bring it again.

        Raises:
            StorageFull, StorageFailed: If it cannot be written.
        """
        folder = self._images / image.label
        known = self.get(image.digest, image.label)
        readable = False
        if known is not None:
            with suppress(NotFound, ArtefactCorrupt):
                self.read(known)
                readable = True
        if known is None:
            self._new.append(image)
        if not readable:
            self._write(folder / (image.digest + image.suffix), data)
        if known is not None and not known.is_damaged:
            image = replace(
                known if readable else image,
                name=known.name,
                part_id=known.part_id if image.part_id == image.digest else image.part_id,
                mm_per_px=image.mm_per_px or known.mm_per_px,
                meta=image.meta or known.meta,
                is_of_dataset=image.is_of_dataset or known.is_of_dataset,
                is_excluded=known.is_excluded and image.is_of_dataset,  # a fit that brings it learns it
            )
        elif known is not None:
            image = replace(image, is_of_dataset=True)  # nobody knows any more
        if image != known:
            self._write(folder / f"{image.digest}.json", facts_bytes(image))
        return image

    def check_label(self, digest: str, label: Label, name: str) -> None:
        """Raise Conflict if an image is stored under the other label: no image is good and bad. Hold the ROI's lock."""
        other: Label = "ng" if label == "ok" else "ok"
        if self.get(digest, other) is not None:
            raise Conflict(
                f"The image {name!r} is stored as {other} already. Delete it there first.",
                details={"label": other, "image": name},
            )

    def labelled(self, label: Label) -> list[StoredImage]:
        """Return the images of a label, by digest."""
        return self._described(label, names_in(self._images / label))

    def included(self) -> list[StoredImage]:
        """Return the good images that are not excluded, by digest."""
        return [image for image in self.labelled("ok") if not image.is_excluded]

    def exclude(self, image: StoredImage, is_excluded: bool) -> StoredImage:
        """Keep a good image out of the next fit, or let it in again; return its facts. Hold the ROI's lock.

        Raises:
            StorageFull, StorageFailed: If they cannot be written.
        """
        changed = replace(image, is_excluded=is_excluded)
        if changed != image:
            self._write(self._images / image.label / f"{image.digest}.json", facts_bytes(changed))
        return changed

    def get(self, digest: str, label: Label) -> StoredImage | None:
        """Return the facts of an image, or None when it is not stored; of damaged ones what the file names say."""
        path = self._images / label / f"{digest}.json"
        data = read_file(path)
        if data is None:
            return _damaged(digest, label, path.parent) if set_aside_copies(path) else None
        parse = partial(facts_from_bytes, digest=digest, label=label)
        try:
            return parse(data)
        except ValueError:
            self._found_damaged(path, parse)
            return _damaged(digest, label, path.parent)

    def find(self, file_name: str, label: Label) -> StoredImage | None:
        """Return the image that clients know by a file name, or None."""
        file_name = unicodedata.normalize("NFC", file_name)
        stem, _, tail = file_name.rpartition("-")
        digits = PurePosixPath(tail).stem
        if not stem or len(digits) != FILE_NAME_DIGITS or not digits.isalnum():
            return None
        names = [name for name in names_in(self._images / label) if name.startswith(digits)]
        return next((image for image in self._described(label, names) if image.file_name == file_name), None)

    def read(self, image: StoredImage) -> bytes:
        """Return the original bytes of an image; of one that was uploaded anew since, those of now.

        Raises:
            NotFound: If they are gone.
            ArtefactCorrupt: If they are not what was uploaded.
            StorageFailed: If the disk does not hand them out.
        """
        known = image
        while True:
            path = self._images / known.label / (known.digest + known.suffix)
            data = read_file(path)
            if data is not None:
                with suppress(ValueError):
                    return known.checked(data)
            # The same pixels may have been deleted and uploaded as another file since these facts were read.
            now = self.get(known.digest, known.label)
            if now is None or now == known:
                break
            known = now
        if data is None and not set_aside_copies(path):
            raise NotFound(f"The stored image {image.file_name!r} is gone. Upload it again.")
        if data is not None and not known.is_damaged:
            self._found_damaged(path, partial(self._check_now, path, known))
        raise ArtefactCorrupt(f"The stored image {image.file_name!r} is damaged. Upload it again, or delete it.")

    def _check_now(self, path: Path, image: StoredImage, data: bytes) -> None:
        """Raise ValueError if a file's bytes are not those that the facts of now describe; called under the lock."""
        facts = read_file(path.with_suffix(".json"))
        if facts is None:
            return  # an image without facts is none
        try:
            now = facts_from_bytes(facts, image.digest, image.label)
        except ValueError:
            return  # It is the facts that are damaged: their reader finds that.
        if now.suffix == path.suffix:
            now.checked(data)

    def delete(self, digests: Iterable[str], label: Label) -> int:
        """Delete images and their embeddings; return how many were there. They stay deleted after a power cut.

        Raises:
            StorageFailed: If a file cannot be deleted; it can be tried again.
        """
        folder, wanted = self._images / label, {*digests}
        of_them = [name for name in names_in(folder) if name.partition(".")[0] in wanted]
        facts = [name for name in of_them if _is_facts(name)]
        # First, and durably: an image without facts is none.
        self._remove(*(folder / name for name in facts))
        rows = [
            self._embeddings / made_by / f"{digest}.npy" for made_by in names_in(self._embeddings) for digest in wanted
        ]
        others = [folder / name for name in of_them if name not in facts]
        self._remove(*others, *(path for path in rows if path.exists()))
        return len({name.partition(".")[0] for name in facts})

    def put_embeddings(self, digest: str, made_by: str, embeddings: NDArray[np.float32]) -> None:
        """Store an extractor's rows [N, D] float32 of an image."""
        buffer = io.BytesIO()
        np.save(buffer, embeddings, allow_pickle=False)
        body = buffer.getvalue()
        self._write(self._embeddings_path(digest, made_by), body + bytes.fromhex(sha256_hex(body)))

    def get_embeddings(self, digest: str, made_by: str) -> NDArray[np.float32] | None:
        """Return an extractor's rows [N, D] of an image, or None when they are missing or damaged."""
        data = read_file(self._embeddings_path(digest, made_by))
        try:
            return None if data is None else embeddings_from_bytes(data)
        except ValueError:
            return None

    def keep_embeddings_of(self, made_by: str) -> int:
        """Delete the embeddings of all other extractors; return how many there were. They can be extracted again.

        Raises:
            StorageFailed: If one cannot be deleted.
        """
        own = self._embeddings_path("", made_by).parent
        others = [self._embeddings / name for name in names_in(self._embeddings) if name != own.name]
        rows = [folder / name for folder in others for name in names_in(folder) if name.endswith(".npy")]
        self._remove(*rows)
        for folder in others:
            with suppress(OSError):  # something else lies in it
                folder.rmdir()
        return len(rows)

    def _described(self, label: Label, names: Iterable[str]) -> list[StoredImage]:
        """Return the images whose facts are among names of files, by digest."""
        digests = sorted({name.partition(".")[0] for name in names if _is_facts(name)})
        return [image for digest in digests if (image := self.get(digest, label)) is not None]

    def _embeddings_path(self, digest: str, made_by: str) -> Path:
        return self._embeddings / sha256_hex(made_by.encode())[:16] / f"{digest}.npy"


def embeddings_from_bytes(data: bytes) -> NDArray[np.float32]:
    """Return embeddings [N, D] float32 from a stored file.

    Raises:
        ValueError: If a byte of it has changed, or it holds none.
    """
    body, footer = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if bytes.fromhex(sha256_hex(body)) != footer:
        raise ValueError("digest mismatch")
    rows: NDArray[np.float32] = arrays_from_bytes(body)[""]
    if rows.dtype != np.float32 or rows.ndim != 2 or not rows.size or not np.isfinite(rows).all():
        raise ValueError("no embeddings")
    return rows


def _is_facts(name: str) -> bool:
    return name.endswith(".json") or f".json{CORRUPT_MARK}" in name


def _damaged(digest: str, label: Label, folder: Path) -> StoredImage:
    suffixes = (suffix for suffix in SUFFIX_BY_FORMAT.values() if (folder / f"{digest}{suffix}").exists())
    return StoredImage(
        digest=digest,
        label=label,
        name=DAMAGED_NAME,
        part_id=digest,
        image_hw=(0, 0),
        mm_per_px=None,
        bytes_sha256="",
        suffix=next(suffixes, ".png"),
    )
