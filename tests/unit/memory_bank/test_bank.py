from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.calib import ScoreRule
from backend.memory_bank.bank import MemoryBank, PatchGrid
from backend.memory_bank.learning import learn
from backend.memory_bank.whitening import fit_whitening
from backend.utils import generator
from tests.testkit.fakes import bank_on_a_line, fit_options, grid_placement

# Three images of two cells each. Every distance below is a difference of two of these numbers.
THREE = {"a": (0.0, 1.0), "b": (0.5, 3.0), "c": (10.0, 1.25)}


def unit_rows(n: int, d: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def grids(n_images: int, *, d: int = 8, hw=(4, 5), seed: int = 0, extractor_id: str = "x") -> dict[str, PatchGrid]:
    return {
        f"{seed + image:064x}": PatchGrid(
            embeddings=unit_rows(hw[0] * hw[1], d, seed + image),
            placement=grid_placement(*hw, cell_px=8),
            extractor_id=extractor_id,
        )
        for image in range(n_images)
    }


OPTIONS = {"coreset_rate", "seed", "k", "rule", "first_mode"}


def learned(images: dict[str, PatchGrid], **changes) -> MemoryBank:
    cells = len(next(iter(images.values())).embeddings)
    arguments = {
        "part_ids": {},
        "position_maps": {digest: np.zeros((1, 4), np.float16) for digest in images},
        "mask_cells": np.ones(cells, bool),
        "shape": None,
        "whitening": None,
        "mm_per_px": 0.2,
        "options": fit_options(**{"coreset_rate": 0.2, **{name: changes.pop(name) for name in OPTIONS & set(changes)}}),
    }
    return learn(images, **{**arguments, **changes})


# -- leaving out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "part_ids", "expected"),
    [
        # a: 0 → 0.5, 1 → 1.25.   b: 0.5 → 0 or 1, 3 → 1.25.   c: 10 → 3, 1.25 → 1.
        (1, {}, {"a": (0.5, 0.25), "b": (0.5, 1.75), "c": (7.0, 0.25)}),
        # a: 0 → 0.5, 1.25; 1 → 1.25, 0.5.   b: 0.5 → 0, 1; 3 → 1.25, 1.   c: 10 → 3, 1; 1.25 → 1, 0.5.
        (2, {}, {"a": (0.875, 0.375), "b": (0.5, 1.875), "c": (8.0, 0.5)}),
        # a and b show one part: only the vectors of c are left for both; c still has all of theirs.
        (1, {"a": "p", "b": "p"}, {"a": (1.25, 0.25), "b": (0.75, 1.75), "c": (7.0, 0.25)}),
        # Two vectors are left for a and b, so k = 5 is the mean of two; c has four.
        (
            5,
            {"a": "p", "b": "p"},
            {
                "a": ((1.25 + 10) / 2, (0.25 + 9) / 2),
                "b": ((0.75 + 9.5) / 2, (1.75 + 7) / 2),
                "c": ((10 + 9 + 9.5 + 7) / 4, (1.25 + 0.25 + 0.75 + 1.75) / 4),
            },
        ),
    ],
    ids=["k=1", "k=2", "shared part", "k larger than what is left"],
)
def test_each_image_is_compared_with_the_vectors_of_other_parts_as_by_hand(k, part_ids, expected):
    bank = bank_on_a_line(THREE, k=k, part_ids=part_ids)
    assert bank.image_digests == ("a", "b", "c")
    np.testing.assert_allclose(bank.loo_distances, [expected[name] for name in "abc"], atol=1e-6)


def test_an_image_that_repeats_another_ones_patch_is_at_distance_zero_from_it():
    bank = bank_on_a_line({"a": (1.0, 2.0), "b": (2.0, 7.0)})
    assert bank.loo_distances.tolist() == [[1, 0], [0, 5]]


def test_two_images_of_one_part_do_not_vouch_for_each_other():
    same = {"a": (1.0, 2.0), "b": (1.0, 2.0), "c": (4.0, 9.0)}
    assert bank_on_a_line(same).loo_distances[0].tolist() == [0, 0]
    assert bank_on_a_line(same, part_ids={"a": "p", "b": "p"}).loo_distances[0].tolist() == [3, 2]


def test_an_image_that_owns_every_vector_near_a_patch_is_far_from_the_rest_without_it():
    # Of 0, 0.1 (a) and 0.05, 5 (b) the coreset keeps 0 and 5: all that is near zero belongs to a.
    seed = next(seed for seed in range(100) if int(generator(seed).integers(4)) == 0)
    bank = bank_on_a_line({"a": (0.0, 0.1), "b": (0.05, 5.0)}, coreset_rate=0.5, seed=seed)
    assert bank.vectors.ravel().tolist() == [0, 5]
    assert bank.source.tolist() == [0, 1]
    np.testing.assert_allclose(bank.loo_distances, [[5, 4.9], [0.05, 5]], atol=1e-6)


def test_an_image_that_owns_all_vectors_has_no_score_of_its_own():
    bank = bank_on_a_line({"a": (0.0, 0.1), "b": (0.05, 5.0)}, coreset_rate=0.25, seed=0)
    assert len(bank.vectors) == 1
    owner = int(bank.source[0])
    assert np.isnan(bank.loo_distances[owner]).all()
    assert np.isfinite(bank.loo_distances[1 - owner]).all()


def test_one_part_alone_has_no_scores():
    bank = bank_on_a_line(THREE, part_ids=dict.fromkeys(THREE, "p"))
    assert bank.n_parts == 1
    assert np.isnan(bank.loo_distances).all()


def test_cells_outside_the_learned_shape_are_neither_learned_nor_scored():
    bank = bank_on_a_line(
        {"a": (0.0, 77.0, 1.0), "b": (0.5, 88.0, 3.0)}, mask_cells=[True, False, True], shape={"kind": "rect"}
    )
    assert sorted(bank.vectors.ravel().tolist()) == [0, 0.5, 1, 3]
    assert bank.n_embeddings == 4
    assert np.isnan(bank.loo_distances[:, 1]).all()
    np.testing.assert_allclose(bank.loo_distances[:, [0, 2]], [[0.5, 0.5], [0.5, 2]])


@given(st.integers(2, 5), st.integers(1, 3), st.sampled_from([0.1, 0.3, 1.0]), st.integers(0, 1000))
def test_leaving_out_is_what_a_search_among_the_other_parts_vectors_gives(n_images, n_parts, rate, seed):
    images = grids(n_images, seed=seed)
    part_ids = {digest: f"part {i % n_parts}" for i, digest in enumerate(sorted(images))}
    bank = learned(images, part_ids=part_ids, coreset_rate=rate, seed=seed, k=2)
    for i, digest in enumerate(bank.image_digests):
        others = [j for j, source in enumerate(bank.source) if bank.part_ids[source] != part_ids[digest]]
        if not others:
            assert np.isnan(bank.loo_distances[i]).all()
            continue
        rows = images[digest].embeddings
        exact = np.sort(np.linalg.norm(rows[:, None] - bank.vectors[others][None], axis=2), axis=1)[:, :2].mean(axis=1)
        np.testing.assert_allclose(bank.loo_distances[i], exact, atol=1e-6)
        np.testing.assert_array_equal(bank.distances_without(rows, part_ids[digest]), bank.loo_distances[i])


# -- what a memory knows ------------------------------------------------------------------------------------------


def test_every_vector_remembers_the_image_that_it_came_from():
    images = grids(4)
    bank = learned(images, coreset_rate=0.3)
    assert len(bank.vectors) == math.ceil(4 * 20 * 0.3)
    assert (bank.n_embeddings, bank.coreset_rate_applied) == (80, 24 / 80)
    for vector, source in zip(bank.vectors, bank.source, strict=True):
        rows = images[bank.image_digests[source]].embeddings
        assert (rows == vector).all(axis=1).any()


def test_a_memory_does_not_depend_on_the_order_of_its_images():
    images = grids(5)
    backwards = dict(reversed(images.items()))
    first, second = learned(images), learned(backwards)
    assert first.checksum == second.checksum
    assert first == second
    np.testing.assert_array_equal(first.vectors, second.vectors)


def test_distances_to_a_memory_by_hand():
    bank = bank_on_a_line(THREE, k=2)
    query = np.array([[0.75], [20.0]], np.float32)
    # 0.75: 0.5 and 1 are both 0.25 away. 20: 10 and 3.
    np.testing.assert_allclose(bank.distances(query), [0.25, 13.5])
    np.testing.assert_allclose(bank.distances(query, k=1), [0.25, 10])
    np.testing.assert_allclose(bank.distances(query, k=99), [(0.75 + 0.25 + 0.25 + 2.25 + 9.25 + 0.5) / 6, 104.25 / 6])
    np.testing.assert_allclose(bank.distances_without(query, "c", k=1), [0.25, 17])
    assert bank.distances_without(query, "nobody", k=1).tolist() == bank.distances(query, k=1).tolist()


def test_a_memory_knows_the_part_of_each_learned_image_and_of_no_other():
    bank = bank_on_a_line(THREE, part_ids={"a": "p", "c": "p"})
    assert [bank.part_of(name) for name in ("a", "b", "c", "d")] == ["p", "b", "p", None]
    assert bank.n_parts == 2


def test_a_memory_cannot_be_written_to():
    bank = bank_on_a_line(THREE)
    for array in (bank.vectors, bank.source, bank.mask_cells, bank.loo_distances):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_a_memory_that_whitens_keeps_unit_rows_and_whitens_what_it_is_asked():
    images = {
        digest: dataclasses.replace(grid, embeddings=grid.embeddings * np.float32(50))
        for digest, grid in grids(3).items()
    }
    whitening = fit_whitening(np.concatenate([grid.embeddings for grid in images.values()]))
    bank = learned(images, whitening=whitening, coreset_rate=1.0)
    np.testing.assert_allclose(np.linalg.norm(bank.vectors, axis=1), 1, atol=1e-5)
    raw = images[bank.image_digests[0]].embeddings
    assert bank.distances(raw).max() < 1e-6
    exact = np.linalg.norm(whitening.apply(raw)[:, None] - bank.vectors[20:][None], axis=2).min(axis=1)
    np.testing.assert_allclose(bank.loo_distances[0], exact, atol=1e-6)


BASE = bank_on_a_line(THREE)


CHANGED_OPTIONS = (
    {"k": 2},
    {"seed": 1},
    {"coreset_rate": 0.999},
    {"first_mode": "max"},
    {"rule": ScoreRule(mode="percentile", percentile=99.0, blur_sigma=0.0, area_mm2_thr=2.0)},
    {"rule": ScoreRule(mode="percentile", percentile=99.0, blur_sigma=1.0, area_mm2_thr=1.0)},
)


@pytest.mark.parametrize(
    "changes",
    [
        *({"options": fit_options(**option)} for option in CHANGED_OPTIONS),
        {"mm_per_px": 0.21},
        {"extractor_id": "another"},
        {"n_embeddings": 7},
        {"part_ids": ("a", "b", "b")},
        {"image_digests": ("a", "b", "d")},
        {"shape": {"kind": "rect"}},
        {"placement": grid_placement(1, 2, cell_px=2)},
        {"vectors": BASE.vectors + np.float32(1e-6)},
        {"source": BASE.source[::-1].copy()},
        {"loo_distances": BASE.loo_distances + np.float32(1e-6)},
        {"mask_cells": np.array([True, False])},
        {"whitening": fit_whitening(np.eye(1, dtype=np.float32))},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_changes_a_score_changes_the_checksum(changes):
    assert dataclasses.replace(BASE, **changes).checksum != BASE.checksum
    assert dataclasses.replace(BASE).checksum == BASE.checksum


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"vectors": np.zeros((0, 1), np.float32), "source": np.zeros(0, np.int32)}, "M ≥ 1"),
        ({"source": np.zeros(3, np.int32)}, "source"),
        ({"source": np.full(6, 3, np.int32)}, "source"),
        ({"source": np.full(6, -1, np.int32)}, "source"),
        ({"part_ids": ("a",)}, "part_ids"),
        ({"loo_distances": np.zeros((3, 3), np.float32)}, "loo_distances"),
        ({"mask_cells": np.ones(3, bool)}, "mask_cells"),
    ],
)
def test_a_memory_whose_parts_do_not_fit_together_is_refused(changes, word):
    with pytest.raises(ValueError, match=word):
        dataclasses.replace(BASE, **changes)


def test_a_grid_needs_one_row_per_cell():
    placement = grid_placement(2, 3)
    PatchGrid(embeddings=np.zeros((6, 4), np.float32), placement=placement, extractor_id="x")
    for shape in ((5, 4), (6,), (2, 3, 4)):
        with pytest.raises(ValueError, match="6 rows"):
            PatchGrid(embeddings=np.zeros(shape, np.float32), placement=placement, extractor_id="x")


@pytest.mark.parametrize(
    ("images", "changes", "word"),
    [
        ({}, {"mask_cells": np.ones(20, bool)}, "at least one image"),
        (grids(2), {"mask_cells": np.zeros(20, bool)}, "one cell"),
        ({**grids(1), **grids(1, seed=9, extractor_id="y")}, {}, "one extractor"),
        ({**grids(1), **grids(1, seed=9, hw=(5, 4))}, {}, "one grid"),
        (grids(2), {"coreset_rate": 0.0}, "rate"),
    ],
)
def test_images_that_cannot_be_learned_together_are_refused(images, changes, word):
    arguments = {"mask_cells": np.ones(20, bool), **changes}
    with pytest.raises(ValueError, match=word):
        learned(images or {}, **arguments) if images else learn(
            {},
            part_ids={},
            position_maps={},
            shape=None,
            whitening=None,
            options=fit_options(),
            mm_per_px=1,
            **arguments,
        )
