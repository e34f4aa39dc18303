"""The files of a ROI as older versions of this service wrote them: format 1 and 2 of the memory and the calibration."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np

from backend.artifacts.formats import with_digest
from backend.memory_bank.bank import MemoryBank
from backend.utils import canonical_json, sealed_json, sha256_hex

OLD_CHECKSUM = "0" * 64


def older_memory(bank: MemoryBank, version: int, *, extractor_id: str | None = None, **options: Any) -> bytes:
    """Return a ``memory.npz`` of format 1 or 2 with what a memory of now has learned.

    Args:
        bank: The memory.
        version: The format.
        extractor_id: In place of the memory's own.
        options: ``coreset_rate``, ``seed``, ``k``, ``mode``, ``percentile``, ``blur_sigma``, ``area_mm2_thr``; the
            first three alone are in format 1.
    """
    chosen = {"coreset_rate": 0.25, "seed": 3, "k": 2, **options}
    rule = {name: chosen.pop(name, value) for name, value in _RULE.items()}
    area_mm2_thr = chosen.pop("area_mm2_thr", 1.0)
    facts = {
        "checksum": OLD_CHECKSUM,
        "format_version": version,
        "image_digests": list(bank.image_digests),
        "part_ids": list(bank.part_ids),
        "image_hw": list(bank.placement.image_hw),
        "input_hw": list(bank.placement.input_hw),
        "grid_hw": list(bank.placement.grid_hw),
        "shape": None if bank.shape is None else dict(bank.shape),
        "extractor_id": extractor_id or bank.extractor_id,
        "precision": bank.precision,
        "n_embeddings": bank.n_embeddings,
        "mm_per_px": bank.mm_per_px,
        **(chosen if version == 1 else {"options": {**chosen, "rule": rule, "area_mm2_thr": area_mm2_thr}}),
    }
    arrays = {"vectors": bank.vectors, "source": bank.source}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, facts=np.frombuffer(sealed_json(facts), np.uint8), **arrays)
    return with_digest(buffer.getvalue())


def older_calibration(version: int, **fields: Any) -> bytes:
    """Return a ``calib.json`` of format 1 or 2; ``fields`` take the place of those of a plain one."""
    document = {"format_version": version, **_CALIBRATION, **fields, "other_memories": []}
    if version == 1:
        del document["blur_sigma"]
    document["sha256"] = sha256_hex(canonical_json(document))
    return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


_RULE = {"mode": "percentile", "percentile": 99.0, "blur_sigma": 1.0}
_CALIBRATION = {
    "threshold": 0.4321,
    "p99_ok": 0.4321,
    "p5_ng": None,
    "method": "ok_percentile",
    "n_ok": 5,
    "n_ng": 0,
    "ng_caught": 0,
    "margin": 1.25,
    "ok_mean": 0.3,
    "ng_mean": 0.0,
    "expected_false_alarm_rate": 1 / 6,
    "false_alarm_rate_upper_95": 0.45,
    "warnings": [],
    "ok_percentile": 90.0,
    "score_mode": "top_mean",
    "score_percentile": 97.0,
    "blur_sigma": 1.0,
    "area_mm2_thr": 0.5,
    "mm_per_px": 0.2,
    "ok_scores_from": "stored",
    "memory_checksum": OLD_CHECKSUM,
}
