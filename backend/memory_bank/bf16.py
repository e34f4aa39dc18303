"""Candidates for the nearest neighbours from bfloat16 matrix units, with a bound on what rounding can hide.

bf16 keeps 8 bits of a number, so a row is moved a little, and how far is measured here for every row. By the triangle
inequality the distance of two rounded rows differs from that of the rows themselves by no more than their two moves.
Between neighbours, which are near, that is a far sharper bound than one on their product.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from backend.memory_bank.distances import classes, fold

_ROUNDOFF = 2.0**-9
"""bf16's unit roundoff."""

_ROWS_AT_ONCE = 512
"""Rows rounded at one time, so that they stay in the processor's cache."""

_RESULTS_AT_ONCE = 1 << 24
"""Results held at one time: 32 MiB."""


@cache
def has_bf16_units() -> bool:
    """Return whether this processor multiplies bf16 matrices in hardware; emulated it is slower than float32."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


class Bf16Candidates:
    """Finds the vectors that can be among the nearest; safe to call from several threads.

    Keeps a bf16 copy of the vectors: centred, because the part that all share only costs digits, and with half their
    squares beside them, so that one product gives ½|q|² + ½|v|² - q·v, which is small and precise for neighbours.

    Args:
        vectors: [M, D] float32, finite.
    """

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        m, d = vectors.shape
        self._mean = vectors.mean(axis=0)
        right = torch.ones((m, d + 6), dtype=torch.bfloat16)
        self._largest_move = self._largest_half = 0.0
        for start in range(0, m, _ROWS_AT_ONCE):
            rounded, moves, halves = _rounded(vectors[start : start + _ROWS_AT_ONCE] - self._mean)
            right[start : start + _ROWS_AT_ONCE, :d] = rounded
            right[start : start + _ROWS_AT_ONCE, d : d + 3] = _three_parts(halves)
            self._largest_move = max(self._largest_move, float(moves.max()))
            self._largest_half = max(self._largest_half, float(halves.max()))
        self._right = right.T

    def __call__(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return pairs (query, vector) in which the k nearest vectors of each query [N, D] float32 occur."""
        at_once = max(1, _RESULTS_AT_ONCE // self._right.shape[1])
        parts = [(start, *self._pairs(query[start : start + at_once], k)) for start in range(0, len(query), at_once)]
        return np.concatenate([rows + start for start, rows, _ in parts]), np.concatenate([part[2] for part in parts])

    def _pairs(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rounded, moves, halves = _rounded(query - self._mean)
        move = moves + self._largest_move
        # Twice as many roundings as for float32: the units add the two products of a pair one after the other.
        largest = max(float(halves.max()), self._largest_half)
        accumulated = 8 * (query.shape[1] + 80) * (2.0**-24 * largest + float(np.finfo(np.float32).tiny))
        # Shifted by what summing may be off, no result is negative, and bf16's bits sort as the numbers do.
        ones = torch.ones((len(query), 3), dtype=torch.bfloat16)
        left = torch.cat([-rounded, ones, _three_parts(halves + accumulated)], dim=1)
        with torch.inference_mode():
            bits: NDArray[np.int16] = (left @ self._right).view(torch.int16).numpy()
        best = np.full((len(query), classes(bits.shape[1], k)), np.iinfo(np.int16).max, dtype=np.int16)
        fold(np.minimum, bits, best)
        kth = np.partition(best, k - 1, axis=1)[:, k - 1]
        # From the k-th smallest result to the largest distance it can stand for, and back to a result.
        reach = np.sqrt(2 * _to_float64(kth.clip(min=0)) * (1 + 2 * _ROUNDOFF)) + 2 * move
        limit = (0.5 * reach**2 + 2 * accumulated) * (1 + 2 * _ROUNDOFF)
        rows, columns = np.divmod(np.flatnonzero(bits <= _bits_at_least(limit)[:, None]), bits.shape[1])
        return rows, columns


def _rounded(rows: NDArray[np.float32]) -> tuple[torch.Tensor, NDArray[np.float64], NDArray[np.float64]]:
    """Return rows [N, D] in bf16, how far each was moved [N], and half the square of each moved row [N]."""
    rounded = torch.from_numpy(rows).bfloat16()
    exact = rounded.float().numpy()
    lengths = np.linalg.norm(exact, axis=1).astype(np.float64)
    # On top comes what centring in float32 moved, what the two norms were rounded by, and squares that underflowed.
    underflowed = np.sqrt(rows.shape[1] * float(np.finfo(np.float32).tiny))
    moves = np.linalg.norm(rows - exact, axis=1) * (1 + 1e-4) + 2.0**-20 * lengths + underflowed
    return rounded, moves, 0.5 * lengths**2


def _three_parts(values: NDArray[np.float64]) -> torch.Tensor:
    """Return three bf16 [N, 3] whose sum is each value to 24 bits."""
    rest, parts = torch.from_numpy(values), []
    for _ in range(3):
        parts.append(rest.bfloat16())
        rest = rest - parts[-1].double()
    return torch.stack(parts, dim=1)


def _to_float64(bits: NDArray[np.int16]) -> NDArray[np.float64]:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def _bits_at_least(values: NDArray[np.float64]) -> NDArray[np.int16]:
    """Return the bits of bf16 numbers that are not below ``values`` ≥ 0."""
    return ((values.astype(np.float32).view(np.uint32) >> 16) + 1).astype(np.int16)
