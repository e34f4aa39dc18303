"""The bytes of a memory and of a calibration. Each file ends or holds a digest of itself: no byte changes unnoticed."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from backend.artifacts.array_files import arrays_from_bytes
from backend.artifacts.files import read_end
from backend.artifacts.memory_checks import check_calibration_usable, check_learned_usable, check_memory_usable
from backend.calib import Calibration
from backend.imaging.placement import Placement
from backend.memory_bank.bank import FitOptions, MemoryBank
from backend.memory_bank.local_bank import LocalBank
from backend.memory_bank.whitening import Whitening
from backend.memory_bank.windows import LearnedCells
from backend.utils import canonical_json, sealed_json, sha256_hex, unsealed_json

FORMAT_VERSION: Final = 4
"""What each version brought.

2: the memory holds its ``FitOptions`` and the calibration its blur.
3: the area that counts is part of the ``ScoreRule``, the options name the first calibration's score mode, and the
   memory holds the position maps of its images and whether the ROI is aligned.
4: the position maps also hold how the images look (light, detail, colour), each vector knows the cell that it lay at,
   and the memory names the images that are near-identical; the calibration names the stored images that its scores
   are of, the area that they are of, and its false alarms.
"""

_WHITENING: Final = "whitening_"
_LOCAL: Final = "local_"
_DIGEST_CHARS: Final = 64
_FACTS_BEGIN: Final = re.compile(rb'\{"[a-z_0-9]+":')
"""Nothing before the facts looks like it: names of zip entries, and numpy's header, which quotes with apostrophes."""
_FACTS_WITHIN: Final = 64 * 2**20


class OutdatedFormat(ValueError):
    """The file is whole, but of another format version than this program reads."""


@dataclass(frozen=True, kw_only=True)
class LearnedFacts:
    """What is known for certain of a memory that is damaged or of an older format; attributes as of ``MemoryBank``.

    Attributes:
        settings: What it says of how it was fitted, JSON types; see ``older_formats.fit_options``.
    """

    image_digests: tuple[str, ...]
    placement: Placement
    shape: Mapping[str, Any] | None
    extractor_id: str
    mm_per_px: float
    settings: Mapping[str, Any]
    aligned: bool | None = None


def bank_bytes(bank: MemoryBank) -> bytes:
    """Return a memory as an npz file: ``facts``, a sealed JSON object in UTF-8 bytes, and its arrays.

    The same memory gives the same bytes: numpy writes the arrays uncompressed, in order, under a fixed date. The zip
    archive's comment is the SHA-256 of everything before it.
    """
    facts = {**bank.facts(), "format_version": FORMAT_VERSION, "checksum": bank.checksum}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, facts=np.frombuffer(sealed_json(facts), np.uint8), **bank.arrays())
    return with_digest(buffer.getvalue())


def with_digest(archive: bytes) -> bytes:
    """Return a zip archive that has no comment with its digest as its comment."""
    body = archive[:-2] + _DIGEST_CHARS.to_bytes(2, "little")
    return body + sha256_hex(body).encode()


def bank_from_bytes(data: bytes) -> MemoryBank:
    """Return the memory of an npz file that ``bank_bytes`` made.

    Raises:
        OutdatedFormat: If it is of another format version.
        ValueError: If it is no such file, or a single byte of it is not as it was written.
    """
    # First of all: what has changed is not even parsed.
    if sha256_hex(data[:-_DIGEST_CHARS]).encode() != data[-_DIGEST_CHARS:]:
        raise ValueError("digest mismatch")
    try:
        arrays = arrays_from_bytes(data)
        facts = unsealed_json(arrays.pop("facts").tobytes())
        _check_version(facts)
        whitening, local = _with_prefix(arrays, _WHITENING), _with_prefix(arrays, _LOCAL)
        placement = _placement(facts)
        cells = LearnedCells(grid_hw=placement.grid_hw, mask_cells=arrays["mask_cells"])
        bank = MemoryBank(
            **arrays,
            local=LocalBank.from_arrays(local, cells) if local else None,
            image_digests=tuple(facts["image_digests"]),
            part_ids=tuple(facts["part_ids"]),
            near_identical=tuple(tuple(group) for group in facts["near_identical"]),
            placement=placement,
            shape=facts["shape"],
            whitening=Whitening.from_arrays(whitening) if whitening else None,
            extractor_id=facts["extractor_id"],
            precision=facts["precision"],
            options=FitOptions.from_fields(facts["options"]),
            n_embeddings=facts["n_embeddings"],
            mm_per_px=facts["mm_per_px"],
            alignment=facts["alignment"],
            aligned=facts["aligned"],
        )
    except (OSError, KeyError, TypeError, IndexError, zipfile.BadZipFile, EOFError, RuntimeError) as error:
        # RuntimeError: a flag or a version in the zip's headers that says "encrypted" or "of the future".
        raise ValueError("not a memory file") from error
    try:
        check_memory_usable(bank)
        if bank.checksum != facts["checksum"]:
            raise ValueError("checksum mismatch")
    except (TypeError, OverflowError) as error:
        raise ValueError("not a memory file") from error
    return bank


def facts_of_damaged(data: bytes) -> LearnedFacts | None:
    """Return what a damaged memory file still tells for certain, or None.

    Its facts stand at its beginning under a digest of their own: where that holds, damage to the arrays behind, the
    zip's headers or a lost end takes nothing from them.
    """
    begin = _FACTS_BEGIN.search(data)
    if begin is None:
        return None
    text = data[begin.start() : begin.start() + _FACTS_WITHIN].decode("utf-8", errors="replace")
    try:
        facts, _ = json.JSONDecoder().raw_decode(text)
        facts = unsealed_json(canonical_json(facts))
        check_learned_usable(
            _pair(facts["image_hw"]), _pair(facts["grid_hw"]), facts["mm_per_px"], facts["extractor_id"]
        )
        return LearnedFacts(
            image_digests=tuple(facts["image_digests"]),
            placement=_placement(facts),
            shape=facts["shape"],
            extractor_id=facts["extractor_id"],
            mm_per_px=facts["mm_per_px"],
            settings=facts,
            aligned=facts.get("aligned"),
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def calibration_bytes(calibrations: list[Calibration]) -> bytes:
    """Return calibrations, newest first, as the text of ``calib.json``: the newest's fields, the others, a digest."""
    newest, *others = (calibration.to_fields() for calibration in calibrations)
    document = {"format_version": FORMAT_VERSION, **newest, "other_memories": others}
    document["sha256"] = sha256_hex(canonical_json(document))
    return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def calibrations_from_bytes(data: bytes) -> list[Calibration]:
    """Return the calibrations of a file that ``calibration_bytes`` made, newest first.

    Raises:
        OutdatedFormat: If it is of another format version.
        ValueError: If it is no such file, or a single byte of it is not as it was written.
    """
    try:
        document = json.loads(data)
        if document.pop("sha256") != sha256_hex(canonical_json(document)):
            raise ValueError("digest mismatch")
        _check_version(document)
        del document["format_version"]
        others = document.pop("other_memories")
        calibrations = [Calibration.from_fields(fields) for fields in [document, *others]]
        for calibration in calibrations:
            check_calibration_usable(calibration)
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError("not a calibration file") from error
    if calibration_bytes(calibrations) != data:
        raise ValueError("not in its one byte form")
    return calibrations


def switching_bytes(now: str | None, memory_digest: str, then: str | None) -> bytes:
    """Return the ``calib.json`` of a moment: what it holds changes when another memory comes into force.

    Args:
        now: The text of the file before; None where there is none.
        memory_digest: The digest that ends the file of the memory to come.
        then: The text from then on; None for no calibration.
    """
    return sealed_json({"format_version": FORMAT_VERSION, "memory": memory_digest, "now": now, "then": then})


def calib_in_force(data: bytes, memory: Path) -> bytes | None:
    """Return the text of a ``calib.json`` that holds with the memory of now, None for no calibration.

    Args:
        data: Its bytes.
        memory: The file of the memory.

    Raises:
        ValueError: If it was written for a switch and is damaged; any other text is returned as it is.
        StorageFailed: If the memory's file cannot be read.
    """
    if not data.startswith(b'{"'):  # as ``switching_bytes`` begins, and no other text
        return data
    fields = unsealed_json(data)
    try:
        texts = (fields["now"], fields["then"])
        chosen = texts[(read_end(memory, _DIGEST_CHARS) or b"") == fields["memory"].encode()]
        return None if chosen is None else bytes(chosen.encode())
    except (KeyError, AttributeError) as error:
        raise ValueError("not a calibration file") from error


def calib_text(data: bytes | None) -> str | None:
    """Return a ``calib.json`` of any format as a text; None without one, or where it is damaged."""
    if data is None:
        return None
    with suppress(OutdatedFormat):
        try:
            calibrations_from_bytes(data)
        except OutdatedFormat:
            raise
        except ValueError:
            return None
    return data.decode()


def calib_texts(data: bytes) -> list[bytes]:
    """Return the text of a ``calib.json``, or those before and after a switch; raises as ``calib_in_force``."""
    if not data.startswith(b'{"'):
        return [data]
    fields = unsealed_json(data)
    return [text.encode() for text in (fields.get("now"), fields.get("then")) if isinstance(text, str)]


def _check_version(fields: Mapping[str, Any]) -> None:
    if fields["format_version"] != FORMAT_VERSION:
        raise OutdatedFormat(f"format version {fields['format_version']}, this program reads {FORMAT_VERSION}")


def _placement(facts: Mapping[str, Any]) -> Placement:
    return Placement(
        image_hw=_pair(facts["image_hw"]), input_hw=_pair(facts["input_hw"]), grid_hw=_pair(facts["grid_hw"])
    )


def _with_prefix(arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return the arrays whose names begin with a prefix, without it, taken out of ``arrays``."""
    return {name.removeprefix(prefix): arrays.pop(name) for name in [*arrays] if name.startswith(prefix)}


def _pair(values: list[int]) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)
