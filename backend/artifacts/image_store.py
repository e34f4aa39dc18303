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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from backend.artifacts.files import names_in, read_file, remove, write_atomic
from backend.errors import ArtefactCorrupt, Conflict, InspectionError, NotFound
from backend.imaging.image_codec import SUFFIX_BY_FORMAT
from backend.utils import sealed_json, sha256_hex, unsealed_json

_log = logging.getLogger(__name__)

Label = Literal["ok", "ng"]

FILE_NAME_DIGITS = 12
MAX_STEM_CHARS = 60
DAMAGED_NAME = "damaged"

_DIGEST_BYTES = 32
_FACTS_SET_ASIDE = ".json.corrupt-"


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An image of the store.

    Attributes:
        digest: Of its decoded pixels.
        label: ``ok`` or ``ng``.
        name: What its uploader called it, made safe; see ``StoredImage.file_name``.
        part_id: The physical part that it shows; its digest where nobody said.
        image_hw: Height and width, px.
        mm_per_px: Millimetres per pixel, None where nobody said.
        bytes_sha256: Digest of the file's bytes; empty where the facts are damaged.
        suffix: Of the file, ``.png`` or another of ``SUFFIX_BY_FORMAT``.
        meta: What the client sent along, JSON types.
    """

    digest: str
    label: Label
    name: str
    part_id: str
    image_hw: tuple[int, int]
    mm_per_px: float | None
    bytes_sha256: str
    suffix: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def file_name(self) -> str:
        """What clients see: the uploader's name made safe, then the digest, so that it is unique and stays."""
        return f"{self.name}-{self.digest[:FILE_NAME_DIGITS]}{self.suffix}"

    @property
    def is_damaged(self) -> bool:
        """True when the facts could not be read."""
        return not self.bytes_sha256


def safe_stem(name: str) -> str:
    """Return an uploaded file's name without folder and suffix, of letters, digits, ``-`` and ``_`` only."""
    stem = PurePosixPath(unicodedata.normalize("NFC", name).replace("\\", "/")).stem
    kept = "".join(c if c.isalnum() or c in "-_" else "_" for c in stem)[:MAX_STEM_CHARS].strip("_")
    return kept or "image"


class Files(Protocol):
    """How files are written, deleted, and set aside when they are found damaged."""

    def write(self, path: Path, data: bytes) -> None:
        """Write a file durably."""

    def remove(self, *paths: Path) -> None:
        """Delete files durably."""

    def found_damaged(self, path: Path, is_damaged: Callable[[bytes], bool]) -> None:
        """Take note of a damaged file; ``is_damaged`` tells it by its bytes."""


class PlainFiles:
    """Writes and deletes, and leaves damaged files where they are."""

    def write(self, path: Path, data: bytes) -> None:
        """Write a file durably."""
        write_atomic(path, data)

    def remove(self, *paths: Path) -> None:
        """Delete files durably."""
        remove(*paths)

    def found_damaged(self, path: Path, is_damaged: Callable[[bytes], bool]) -> None:
        """Leave a damaged file where it is."""


class ImageStore:
    """The images and embeddings below one ROI's folder.

    Args:
        roi_folder: The folder.
        files: How files are written; plainly by default.
    """

    def __init__(self, roi_folder: Path, files: Files | None = None) -> None:
        self._images = roi_folder / "images"
        self._embeddings = roi_folder / "embeddings"
        self._files = files or PlainFiles()
        self._new: list[tuple[str, Label]] | None = None

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Delete again what the ``with`` block has stored, if it fails. Hold the ROI's lock."""
        self._new = []
        try:
            yield
        except BaseException:
            new, self._new = self._new, []
            try:
                for label in ("ok", "ng"):
                    self.delete_all([digest for digest, of in new if of == label], label)
            except InspectionError:
                _log.exception("images of a call that failed are still stored")
            raise
        finally:
            self._new = None

    def keep(self) -> None:
        """Keep what the block of ``all_or_none`` has stored so far, whatever comes."""
        if self._new is not None:
            self._new = []

    def put(self, image: StoredImage, data: bytes) -> StoredImage:
        """Store an image's original bytes and facts, and return the facts.

        What is there under the same digest and label keeps its name and bytes; a part, a scale or metadata that come
        with the repeat take the place of the old ones. What is there but missing or damaged is stored anew.

        Raises:
            StorageFull, StorageFailed: If it cannot be written.
        """
        folder = self._images / image.label
        known = self.get(image.digest, image.label)
        readable = known is not None and self._is_readable(known)
        if known is None and self._new is not None:
            self._new.append((image.digest, image.label))
        if not readable:
            self._files.write(folder / (image.digest + image.suffix), data)
        if known is not None and not known.is_damaged:
            image = replace(
                known if readable else image,
                name=known.name,
                part_id=known.part_id if image.part_id == image.digest else image.part_id,
                mm_per_px=image.mm_per_px or known.mm_per_px,
                meta=image.meta or known.meta,
            )
        if image != known:
            self._files.write(folder / f"{image.digest}.json", sealed_json(vars(image)))
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
        digests = {name.partition(".")[0] for name in names_in(self._images / label) if _is_facts(name)}
        found = (self.get(digest, label) for digest in sorted(digests))
        return [image for image in found if image is not None]

    def get(self, digest: str, label: Label) -> StoredImage | None:
        """Return the facts of an image, or None when it is not stored; of damaged facts what the file names tell."""
        path = self._images / label / f"{digest}.json"
        data = read_file(path)
        if data is None:
            set_aside = any(name.startswith(digest + _FACTS_SET_ASIDE) for name in names_in(path.parent))
            return _damaged(path) if set_aside else None
        try:
            return facts_from_bytes(data, digest, label)
        except ValueError:
            self._files.found_damaged(path, lambda again: _are_damaged(again, digest, label))
            return _damaged(path)

    def find(self, file_name: str, label: Label) -> StoredImage | None:
        """Return the image that clients know by a file name, or None."""
        stem, _, tail = file_name.rpartition("-")
        digits = PurePosixPath(tail).stem
        if not stem or len(digits) != FILE_NAME_DIGITS or not digits.isalnum():
            return None
        names = (name for name in names_in(self._images / label) if name.startswith(digits) and _is_facts(name))
        found = (self.get(digest, label) for digest in sorted({name.partition(".")[0] for name in names}))
        return next((image for image in found if image is not None and image.file_name == file_name), None)

    def read(self, image: StoredImage) -> bytes:
        """Return the original bytes of an image.

        Raises:
            NotFound: If they are gone.
            ArtefactCorrupt: If they are not what was uploaded.
            StorageFailed: If the disk does not hand them out.
        """
        path = self._images / image.label / (image.digest + image.suffix)
        data = read_file(path)
        if data is None and not any(name.startswith(f"{path.name}.corrupt-") for name in names_in(path.parent)):
            raise NotFound(f"The stored image {image.file_name!r} is gone. Upload it again.")
        if data is None or sha256_hex(data) != image.bytes_sha256:
            if data is not None and not image.is_damaged:
                self._files.found_damaged(path, lambda again: sha256_hex(again) != image.bytes_sha256)
            raise ArtefactCorrupt(f"The stored image {image.file_name!r} is damaged. Upload it again, or delete it.")
        return data

    def delete(self, digest: str, label: Label) -> bool:
        """Delete an image and its embeddings; return whether it was there. It stays deleted after a power cut."""
        return self.delete_all([digest], label) == 1

    def delete_all(self, digests: Iterable[str], label: Label) -> int:
        """Delete images and their embeddings; return how many were there.

        Raises:
            StorageFailed: If a file cannot be deleted; it can be tried again.
        """
        folder, digests = self._images / label, [*digests]
        wanted = set(digests)
        of_them = [name for name in names_in(folder) if name.partition(".")[0] in wanted]
        facts = [name for name in of_them if _is_facts(name)]
        # First, and durably: an image without facts is none.
        self._files.remove(*(folder / name for name in facts))
        rows = [
            self._embeddings / made_by / f"{digest}.npy" for made_by in names_in(self._embeddings) for digest in digests
        ]
        others = [folder / name for name in of_them if name not in facts]
        self._files.remove(*others, *(path for path in rows if path.exists()))
        return len({name.partition(".")[0] for name in facts})

    def sweep(self) -> int:
        """Delete image files without facts and embeddings without an image; return how many. Hold the ROI's lock.

        A crash leaves the first between the two files of an upload, and the second in the middle of a deletion.
        """
        orphans: list[Path] = []
        digests: set[str] = set()
        for label in ("ok", "ng"):
            names = names_in(self._images / label)
            described = {name.partition(".")[0] for name in names if _is_facts(name)}
            orphans += [self._images / label / name for name in names if _is_undescribed_image(name, described)]
            digests |= described
        for made_by in names_in(self._embeddings):
            rows = (name for name in names_in(self._embeddings / made_by) if name.endswith(".npy"))
            orphans += [self._embeddings / made_by / name for name in rows if name.removesuffix(".npy") not in digests]
        self._files.remove(*orphans)
        return len(orphans)

    def put_embeddings(self, digest: str, made_by: str, embeddings: NDArray[np.float32]) -> None:
        """Store an extractor's rows [N, D] float32 of an image."""
        buffer = io.BytesIO()
        np.save(buffer, embeddings, allow_pickle=False)
        body = buffer.getvalue()
        self._files.write(self._embeddings_path(digest, made_by), body + bytes.fromhex(sha256_hex(body)))

    def get_embeddings(self, digest: str, made_by: str) -> NDArray[np.float32] | None:
        """Return an extractor's rows [N, D] of an image, or None when they are missing or damaged."""
        data = read_file(self._embeddings_path(digest, made_by))
        return None if data is None else rows_from_bytes(data)

    def _is_readable(self, image: StoredImage) -> bool:
        try:
            self.read(image)
        except (NotFound, ArtefactCorrupt):
            return False
        return True

    def _embeddings_path(self, digest: str, made_by: str) -> Path:
        return self._embeddings / sha256_hex(made_by.encode())[:16] / f"{digest}.npy"


def facts_from_bytes(data: bytes, digest: str, label: Label) -> StoredImage:
    """Return the facts of an image as they were sealed.

    Raises:
        ValueError: If a byte has changed, or they are those of another image.
    """
    fields = unsealed_json(data)
    try:
        height, width = fields.pop("image_hw")
        image = StoredImage(image_hw=(int(height), int(width)), **fields)
    except (TypeError, KeyError) as error:
        raise ValueError("not the facts of an image") from error
    if (image.digest, image.label) != (digest, label):
        raise ValueError("the facts of another image")
    return image


def rows_from_bytes(data: bytes) -> NDArray[np.float32] | None:
    """Return embeddings [N, D] from a stored file, or None when a byte of it has changed."""
    body, footer = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if bytes.fromhex(sha256_hex(body)) != footer:
        return None
    rows: NDArray[np.float32] = np.load(io.BytesIO(body), allow_pickle=False)
    return rows


def _is_facts(name: str) -> bool:
    return name.endswith(".json") or _FACTS_SET_ASIDE in name


def _is_undescribed_image(name: str, described: set[str]) -> bool:
    digest, _, suffix = name.partition(".")
    return f".{suffix}" in SUFFIX_BY_FORMAT.values() and digest not in described


def _are_damaged(data: bytes, digest: str, label: Label) -> bool:
    try:
        facts_from_bytes(data, digest, label)
    except ValueError:
        return True
    return False


def _damaged(facts: Path) -> StoredImage:
    label: Label = "ng" if facts.parent.name == "ng" else "ok"
    suffixes = (suffix for suffix in SUFFIX_BY_FORMAT.values() if facts.with_suffix(suffix).exists())
    return StoredImage(
        digest=facts.stem,
        label=label,
        name=DAMAGED_NAME,
        part_id=facts.stem,
        image_hw=(0, 0),
        mm_per_px=None,
        bytes_sha256="",
        suffix=next(suffixes, ".png"),
    )
