"""The last inspected images of each ROI and decision, kept beside the rows of the audit.

    .audit-images/<group>/<number of the row>-<digest of its pixels>.zip     image as sent, heatmap.png, facts.json

A group is what one model decided alike: ``ok``, ``ng`` or, without a calibration, nothing. Where the limit is passed,
the group that takes most gives its oldest, so a flood of good parts never pushes out the few bad ones. Writing happens
behind the answer: it costs an inspection nothing, and may fail without one failing. What was left out is counted.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import queue
import re
import threading
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from backend.artifacts.disk_limit import disk_space
from backend.artifacts.files import names_in, read_file, remove, stamp, write_atomic
from backend.artifacts.model_key import ModelKey
from backend.artifacts.models_folder import ModelsFolder
from backend.errors import ArtefactCorrupt, NotFound
from backend.imaging.image_codec import encode_png
from backend.scoring.inspection import Inspection
from backend.utils import sha256_hex

_log = logging.getLogger(__name__)

_WAITING: Final = 32
_WAITING_BYTES: Final = 256_000_000
_LOOK_AGAIN: Final = 64
"""Files after which the folder is listed again: another process may write to it as well."""

_RESERVE_BYTES: Final = 1_000_000_000
"""What images leave free of the disk at least; a tenth of it where that is less."""

_DIGITS: Final = 16
_NAME: Final = re.compile(rf"[0-9]{{1,19}}-[0-9a-f]{{{_DIGITS}}}\.zip")
_IMAGE, _HEATMAP, _FACTS = "image", "heatmap.png", "facts.json"


@dataclass(frozen=True, kw_only=True)
class KeptImage:
    """What is kept of an inspection.

    Attributes:
        image: The file as it was sent.
        heatmap_png: As ``/infer`` answers it.
        facts: JSON object: the model, decision, score, threshold, regions and the shape that was inspected.
    """

    image: bytes
    heatmap_png: bytes
    facts: Mapping[str, Any]


class AuditImages:
    """Keeps images up to a limit; safe to call from several threads.

    Args:
        folder: Where; it is made with the first image.
        max_bytes: Most that they take together; 0 keeps none.
        models: The models folder, if the folder lies in it: nothing is written where that has vanished.

    Attributes:
        dropped: Images that were not kept: more came than the disk takes, or it takes none.
    """

    def __init__(self, folder: Path, *, max_bytes: int, models: ModelsFolder | None = None) -> None:
        self.dropped = 0
        self._models = models if models is not None and folder.is_relative_to(models.path) else None
        self._folder, self._max_bytes = folder, max_bytes
        self._waiting: queue.Queue[tuple[Path, Callable[[], bytes], int] | None] = queue.Queue(_WAITING)
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._writer: threading.Thread | None = None
        self._is_closed = False
        self._kept: dict[str, dict[str, tuple[int, int]]] | None = None  # time and size of each; the writer's

    def keep(self, row_id: int, key: ModelKey, inspection: Inspection, image: bytes) -> None:
        """Keep the image of a decision, sooner or later; never waits, never raises."""
        held = (inspection.map, inspection.mask, inspection.image_bgr)
        n_bytes = len(image) + sum(array.nbytes for array in held if array is not None)
        if not self._max_bytes:
            return
        path = self._folder / _group(key, inspection.decision) / _name(row_id, inspection.params["image_digest"])
        with self._lock:
            has_room = not self._is_closed and self._waiting_bytes + n_bytes <= _WAITING_BYTES
            if has_room:
                try:
                    self._waiting.put_nowait((path, lambda: _packed(key, inspection, image), n_bytes))
                except queue.Full:
                    has_room = False
            if not has_room:
                self.dropped += 1
                return
            self._waiting_bytes += n_bytes
            if self._writer is None:
                self._writer = threading.Thread(target=self._write_all, name="audit-images", daemon=True)
                self._writer.start()

    def find(self, row_id: int, image_digest: str) -> KeptImage:
        """Return what is kept of the decision of a row.

        Raises:
            NotFound: If nothing is: it was not sent, or has made room.
            ArtefactCorrupt: If it has changed on the disk.
            StorageFailed: If the disk does not hand it out.
        """
        name = _name(row_id, image_digest)
        found = (read_file(self._folder / group / name) for group in names_in(self._folder))
        data = next((each for each in found if each is not None), None)
        if data is None:
            raise NotFound(
                "No image is kept of this decision. The last ones of each ROI and decision are, as many as fit into "
                "BDI_AUDIT_IMAGES_MB."
            )
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                members = {name: archive.read(name) for name in (_IMAGE, _HEATMAP, _FACTS)}
            facts = json.loads(members[_FACTS])
        except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
            raise ArtefactCorrupt("What was kept of this decision's image is damaged.") from error
        return KeptImage(image=members[_IMAGE], heatmap_png=members[_HEATMAP], facts=facts)

    def close(self) -> None:
        """Write what waits, and take nothing more."""
        with self._lock:
            self._is_closed = True
            writer = self._writer
        if writer is not None:
            self._waiting.put(None)
            writer.join()

    def _write_all(self) -> None:
        n_written, n_told = 0, 0
        while (item := self._waiting.get()) is not None:
            path, pack, n_bytes = item
            try:
                if n_written % _LOOK_AGAIN == 0:
                    self._kept = None
                self._write(path, pack())
                n_written += 1
            except Exception:  # whatever it is, inspections go on
                self.dropped += 1
                self._kept = None
                _log.warning("the image of a decision could not be kept", exc_info=True)
            finally:
                with self._lock:
                    self._waiting_bytes -= n_bytes
            if self.dropped > n_told and self._waiting.empty():
                n_told = self.dropped
                _log.warning("%d images of decisions were not kept since the start", n_told)

    def _write(self, path: Path, data: bytes) -> None:
        kept = self._kept = self._listed() if self._kept is None else self._kept
        if len(data) > self._max_bytes:
            raise ValueError(f"the image takes {len(data)} bytes, more than all together may")
        if self._models is not None:
            self._models.check()
        # First room, then the file: what is kept never passes the limit.
        sizes = {group: sum(n_bytes for _, n_bytes in files.values()) for group, files in kept.items()}
        most = min(self._max_bytes, sum(sizes.values()) + self._free_bytes())
        while sum(sizes.values()) + len(data) > most:
            if not any(sizes.values()):
                raise OSError(errno.ENOSPC, "what is left of the disk is for what is more important than images")
            group = max(sizes, key=lambda name: sizes[name])
            oldest = min(kept[group], key=lambda name: kept[group][name])
            remove(self._folder / group / oldest)
            sizes[group] -= kept[group].pop(oldest)[1]
        write_atomic(path, data)
        kept[path.parent.name][path.name] = (time.time_ns(), len(data))

    def _free_bytes(self) -> int:
        """Return what images may still take of the disk; negative where they must give way to what goes before them."""
        disk = disk_space(self._folder)
        return disk.free - min(_RESERVE_BYTES, disk.total // 10)

    def _listed(self) -> dict[str, dict[str, tuple[int, int]]]:
        kept: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
        for group in names_in(self._folder):
            for name in names_in(self._folder / group):
                found = stamp(self._folder / group / name) if _NAME.fullmatch(name) else None
                if found is not None:  # another process may have made room
                    kept[group][name] = found[:2]
        return kept


def _name(row_id: int, image_digest: str) -> str:
    return f"{row_id}-{image_digest[:_DIGITS]}.zip"


def _group(key: ModelKey, decision: str | None) -> str:
    """Return the folder of what a model decided alike; a digest, so that no id can be a path."""
    return sha256_hex(json.dumps([*asdict(key).values(), decision]).encode())[:16]


def _packed(key: ModelKey, inspection: Inspection, image: bytes) -> bytes:
    facts = {
        **asdict(key),
        "score": inspection.score,
        "threshold": inspection.threshold,
        "decision": inspection.decision,
        "image_digest": inspection.params["image_digest"],
        "shape": inspection.params["shape"],
        "heatmap_scale": inspection.heatmap_full_scale,
        "regions": [asdict(region) for region in inspection.regions],
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:  # images are packed already
        archive.writestr(_IMAGE, image)
        archive.writestr(_HEATMAP, encode_png(inspection.heatmap))
        archive.writestr(_FACTS, json.dumps(facts, allow_nan=False))
    return buffer.getvalue()
