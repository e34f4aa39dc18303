"""The file of a memory: it reads back as it was, and no byte of it changes unnoticed."""

from __future__ import annotations

import io
import json
import time

import numpy as np
import pytest

from backend.artifacts.formats import FORMAT_VERSION, bank_bytes, bank_from_bytes, with_digest
from backend.memory_bank.bank import MemoryBank, PatchGrid
from backend.memory_bank.learning import learn
from backend.memory_bank.whitening import fit_whitening
from backend.utils import sealed_json
from tests.testkit.fakes import bank_on_a_line, fit_options, grid_placement


def bank(seed: int = 0, *, whitens: bool = True) -> MemoryBank:
    """A small memory with everything in it that a memory can have."""
    rng = np.random.default_rng(seed)
    placement = grid_placement(4, 5, cell_px=10)
    grids = {
        f"{seed}{image}".ljust(64, "0"): PatchGrid(
            embeddings=rng.standard_normal((20, 6)).astype(np.float32), placement=placement, extractor_id="äxtractor"
        )
        for image in range(3)
    }
    mask_cells = np.ones(20, bool)
    mask_cells[:5] = False
    rows = np.concatenate([grid.embeddings[mask_cells] for grid in grids.values()])
    return learn(
        grids,
        part_ids=dict.fromkeys(list(grids)[:2], "Teil 1"),
        position_maps={digest: rng.standard_normal((6, 4)).astype(np.float16) for digest in grids},
        alignment=0.25,
        aligned=True,
        mask_cells=mask_cells,
        shape={"kind": "rect", "x": 0.0, "y": 10.0, "w": 50.0, "h": 30.0},
        whitening=fit_whitening(rows) if whitens else None,
        options=fit_options(coreset_rate=0.2, seed=7, k=2),
        mm_per_px=0.2,
    )


@pytest.mark.parametrize("whitens", [False, True])
def test_a_memory_reads_back_as_it_was(whitens):
    stored = bank(whitens=whitens)
    read = bank_from_bytes(bank_bytes(stored))
    assert read == stored
    assert read.checksum == stored.checksum
    for name, array in stored.arrays().items():
        assert read.arrays()[name].dtype == array.dtype
        np.testing.assert_array_equal(read.arrays()[name], array)
    query = np.random.default_rng(1).standard_normal((9, 6)).astype(np.float32)
    if not whitens:
        query /= np.linalg.norm(query, axis=1, keepdims=True)
    np.testing.assert_array_equal(read.distances(query), stored.distances(query))
    assert (read.whitening is None) == (not whitens)


def test_the_same_memory_gives_the_same_bytes_at_any_time(monkeypatch):
    first = bank_bytes(bank())
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.0)
    assert bank_bytes(bank()) == first


def test_the_memory_file_is_an_npz_that_numpy_reads_without_pickle():
    with np.load(io.BytesIO(bank_bytes(bank())), allow_pickle=False) as archive:
        assert {"facts", "vectors", "source", "mask_cells", "loo_distances", "whitening_mean"} <= set(archive.files)
        facts = json.loads(archive["facts"].tobytes())
    assert facts["format_version"] == FORMAT_VERSION
    assert facts["extractor_id"] == "äxtractor"


def test_damage_to_any_byte_of_a_memory_is_found():
    whole = bank_bytes(bank_on_a_line({"a": (0.0, 1.0), "b": (0.5, 3.0)}))
    for at in range(len(whole)):
        for flip in (0x01, 0x80):
            broken = bytearray(whole)
            broken[at] ^= flip
            with pytest.raises(ValueError, match=r"\w"):
                bank_from_bytes(bytes(broken))


def test_damage_to_any_region_of_a_memory_and_half_of_one_are_found():
    whole = bank_bytes(bank())
    noise = np.random.default_rng(0).bytes(64)
    for start in range(0, len(whole), 97):
        width = min(64, len(whole) - start)
        changed = [whole[:start] + filler[:width] + whole[start + width :] for filler in (b"\0" * 64, noise)]
        for broken in (whole[:start], whole[: start - 1], *changed):
            if broken != whole:
                with pytest.raises(ValueError, match=r"\w"):
                    bank_from_bytes(broken)


def test_every_number_of_a_memory_is_under_its_checksum():
    # A file whose own digest is right: somebody stored other numbers under the old name.
    stored = bank()
    facts = {**stored.facts(), "format_version": FORMAT_VERSION, "checksum": stored.checksum}
    for name in stored.arrays():
        arrays = {key: array.copy() for key, array in stored.arrays().items()}
        flat = arrays[name].reshape(-1)
        at = int(np.flatnonzero(np.isfinite(flat))[-1])
        flat[at] = not flat[at] if flat.dtype == bool else (flat[at] + 1) % 3
        with pytest.raises(ValueError, match=r"\w"):
            bank_from_bytes(_npz(facts, arrays))
    assert bank_from_bytes(_npz(facts, stored.arrays())) == stored


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": FORMAT_VERSION - 1},
        {"checksum": "0" * 64},
        {"options": fit_options(k=3).to_fields()},
        {"mm_per_px": 0.3},
        {"grid_hw": [5, 4, 1]},
        {"options": {"seed": None}},
        {"aligned": False},
        {"alignment": 0.26},
    ],
)
def test_facts_of_another_format_or_that_were_changed_are_refused(change):
    stored = bank()
    facts = {**stored.facts(), "format_version": FORMAT_VERSION, "checksum": stored.checksum, **change}
    with pytest.raises(ValueError, match=r"\w"):
        bank_from_bytes(_npz(facts, stored.arrays()))


def _npz(facts, arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, facts=np.frombuffer(sealed_json(facts), np.uint8), **arrays)
    return with_digest(buffer.getvalue())
