"""The two searches of a memory bank beside their references: the greedy of a fit, the neighbours of an inspection.

    python -m benchmarks.bench_parts [--rows embeddings.npy] [--rounds 7] [--large]

Needs no network: the rows are noise on the unit sphere (nothing to exploit) and clusters on it (as patches are), or
those of a file. Contenders take turns; a ratio is the median over the rounds of the ratio within a round.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backend.memory_bank.coreset import kcenter_greedy, kcenter_greedy_reference
from backend.memory_bank.nearest import build_index
from backend.utils import generator
from benchmarks.references import FaissFlat
from benchmarks.workbench import Row, duel

D = 768
QUERIES = 729


def unit_noise(n: int, seed: int) -> NDArray[np.float32]:
    """Return rows [n, 768] float32, uniform on the unit sphere."""
    rows = generator(seed).standard_normal((n, D), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def unit_clusters(n: int, seed: int, *, clusters: int = 300) -> NDArray[np.float32]:
    """Return unit rows [n, 768] float32 around so many directions, tight ones and loose ones."""
    member = generator(seed).integers(0, clusters, n)
    spread = np.geomspace(0.05, 0.8, clusters, dtype=np.float32)[member, None]
    rows = unit_noise(clusters, 0)[member] + spread * unit_noise(n, seed)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def greedy_row(name: str, rows: NDArray[np.float32], m: int, *, rounds: int) -> Row:
    """Measure k-center greedy beside its definition."""
    picks: dict[str, NDArray[np.int64]] = {}
    figures = duel(
        lambda: picks.update(service=kcenter_greedy(rows, m)),
        lambda: picks.update(reference=kcenter_greedy_reference(rows, m)),
        rounds=rounds,
        warm=False,
    )
    same = np.array_equal(picks["service"], picks["reference"])
    return Row(work=f"greedy {len(rows):,}×{rows.shape[1]} → {m}, {name}", **figures, limit=0.08, same_result=same)


def nearest_row(
    name: str, memory: NDArray[np.float32], query: NDArray[np.float32], *, rounds: int, limit: float | None
) -> Row:
    """Measure the nearest of a memory beside FAISS flat, which gives squares and takes no differences."""
    index, flat = build_index(memory), FaissFlat(memory)
    for _ in range(3):  # a large memory gets its bf16 copy after a few searches
        distances, indices = index.search(query)
    flat_distances, flat_indices = flat.search(query)
    tied = np.abs(np.linalg.norm(query - memory[flat_indices], axis=1) - distances[:, 0]) <= 1e-6
    same = (
        bool(((indices[:, 0] == flat_indices) | tied).all()) and np.abs(distances[:, 0] - flat_distances).max() < 1e-5
    )
    figures = duel(lambda: index.search(query), lambda: flat.search(query), rounds=rounds, calls=5)
    work = f"nearest of {len(memory):,}×{memory.shape[1]} for {len(query)}, {name}"
    return Row(work=work, **figures, limit=limit, same_result=same)


def large_row(n: int = 364_500, m: int = 7_290) -> Row:
    """Measure a coreset of 500 images at 2 %, and the memory that it takes beside the embeddings."""
    rows = unit_clusters(n, 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    kcenter_greedy(rows, m)
    took = time.perf_counter() - started
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return Row(work=f"greedy {n:,}×{D} → {m}", service=took, unit="s", remark=f"peak memory + {more:.0f} MiB")


def all_rows(rounds: int, file: Path | None) -> list[Row]:
    """Measure everything but the large coreset."""
    sets = {"noise": (unit_noise(21_870, 1), unit_noise(QUERIES, 2))}
    sets["clusters"] = (unit_clusters(21_870, 1), unit_clusters(QUERIES, 2))
    if file is not None:
        rows = np.load(file)
        sets[file.stem] = (np.ascontiguousarray(rows[:-QUERIES]), np.ascontiguousarray(rows[-QUERIES:]))
    table = [greedy_row(name, rows, -(-len(rows) // 50), rounds=min(rounds, 3)) for name, (rows, _) in sets.items()]
    for size, limit in ((437, None), (10_000, 0.5)):
        for name, (rows, query) in sets.items():
            memory = np.ascontiguousarray(rows[kcenter_greedy(rows, min(size, len(rows)))])
            table.append(nearest_row(name, memory, query, rounds=rounds, limit=limit))
    return table


def print_rows(rows: Sequence[Row]) -> None:
    """Print a line per row: median times, the median ratio, its smallest and largest, and whether it is met."""
    for row in rows:
        times = " : ".join(f"{figure:9.1f}" for figure in (row.service, row.reference) if figure is not None)
        ratio = (
            ""
            if row.ratio is None or row.spread is None
            else f"{row.ratio:5.2f} ({row.spread[0]:.2f}–{row.spread[1]:.2f})"
        )
        verdict = "" if row.limit is None else f"{'met' if row.is_met else 'MISSED'} {row.limit_text}"
        result = "" if row.same_result else "OTHER RESULT"
        print(f"{row.work:48s} {times} {row.unit} {ratio} {verdict} {result} {row.remark}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 when a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, help="[N, D] float32 in an npy file; the last 729 are the query")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--large", action="store_true", help="also 364,500 rows, of which 7,290 are picked")
    arguments = parser.parse_args(argv)
    rows = [large_row()] if arguments.large else []  # first: the peak is that of the process
    rows += all_rows(arguments.rounds, arguments.rows)
    print_rows(rows)
    return int(any(row.limit is not None and not row.is_met for row in rows))


if __name__ == "__main__":
    sys.exit(main())
