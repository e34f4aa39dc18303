"""The rows that have a reference beside them: the contenders, and the check that both come to the same result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.demo.client import Client
from backend.imaging.image_codec import encode_png
from backend.memory_bank.coreset import coreset_size, kcenter_greedy, kcenter_greedy_reference
from backend.memory_bank.index import build_index
from benchmarks.machine import cuda_device
from benchmarks.references import FaissFlat, PlainNearest, TorchEagerExtractor
from benchmarks.servers import inspect, learn
from benchmarks.workbench import FITTED, Row, Workbench, duel

_TIE = 1e-6
_SAME_DISTANCE = 1e-5
_SAME_DIRECTION = 0.999
_SAME_SCORE = 0.03
NO_CUDA = "not measured: no CUDA device"


def extract_row(bench: Workbench, device: str = "cpu", limit: float | None = 0.38) -> Row:
    """Measure the extraction of one ROI."""
    features = bench.features if device == "cpu" else bench.features_on(device)
    eager = TorchEagerExtractor(bench.weights, device=device, input_size=bench.plan.size_px)
    image = bench.defective
    cosines = np.einsum("nd,nd->n", features.extract(image)[0], eager.extract(image))
    figures = duel(
        lambda: features.extract(image),
        lambda: eager.extract(image),
        rounds=bench.plan.rounds,
        calls=bench.plan.calls,
    )
    facts = features.engine_facts()
    return Row(
        work=f"extract one {bench.plan.size_px} px ROI, {device.partition(':')[0].upper()}",
        **figures,
        limit=limit,
        same_result=bool(cosines.min() > _SAME_DIRECTION),
        remark=f"{facts.name} {facts.precision} : torch fp32 eager; smallest cosine {cosines.min():.5f}",
    )


def nearest_rows(bench: Workbench) -> list[Row]:
    """Measure the search for the nearest vector, in memories of the usual size and in a large one."""
    rows, plan = bench.embeddings, bench.plan
    # A coreset begins with the smaller ones.
    memory = rows[kcenter_greedy(rows, min(max(*plan.usual_memory_sizes, plan.memory_size), len(rows)))]
    return [
        *(_nearest_row(bench, memory[:size], PlainNearest, "plain numpy", 1.1) for size in plan.usual_memory_sizes),
        _nearest_row(bench, memory[: plan.memory_size], FaissFlat, "FAISS flat", 0.6),
    ]


def _nearest_row(
    bench: Workbench,
    memory: NDArray[np.float32],
    reference: Callable[[NDArray[np.float32]], FaissFlat | PlainNearest],
    name: str,
    limit: float,
) -> Row:
    memory, query = np.ascontiguousarray(memory), bench.query
    ours, theirs = build_index(memory), reference(memory)
    (distances, indices), (expected, expected_indices) = ours.search(query), theirs.search(query)
    off = float(np.abs(distances[:, 0] - expected).max())
    exact = np.linalg.norm(query - memory[expected_indices], axis=1)
    differs = indices[:, 0] != expected_indices
    tied = np.abs(exact - distances[:, 0]) <= _TIE
    figures = duel(
        lambda: ours.search(query), lambda: theirs.search(query), rounds=bench.plan.rounds, calls=bench.plan.calls
    )
    ties = int(np.count_nonzero(differs))
    return Row(
        work=f"nearest of {len(memory):,}×{memory.shape[1]} for {len(query)} queries",
        **figures,
        limit=limit,
        same_result=off <= _SAME_DISTANCE and bool(tied[differs].all()),
        remark=f"{name}; same indices{f' but {ties} ties' if ties else ''}, distances within {off:.0e}",
    )


def coreset_row(bench: Workbench) -> Row:
    """Measure the picking of a coreset."""
    rows = bench.embeddings
    m = coreset_size(len(rows), bench.plan.coreset_rate)
    picks: dict[str, NDArray[np.int64]] = {}
    figures = duel(
        lambda: picks.update(service=kcenter_greedy(rows, m)),
        lambda: picks.update(reference=kcenter_greedy_reference(rows, m)),
        rounds=bench.plan.long_rounds,
        warm=False,
    )
    same = np.array_equal(picks["service"], picks["reference"])
    farthest = same or picks_the_farthest(rows, picks["service"])
    remark = "same picks" if same else "same but for ties" if farthest else "OTHER PICKS"
    return Row(
        work=f"coreset {len(rows):,}×{rows.shape[1]} → {m}",
        **figures,
        limit=0.08,
        same_result=farthest,
        remark=f"numpy difference norms; {remark}",
    )


def picks_the_farthest(rows: NDArray[np.float32], picks: NDArray[np.int64], tie: float = _TIE) -> bool:
    """Return whether every pick, but for ties, is the vector farthest from all picks before it."""
    nearest = np.full(len(rows), np.inf, dtype=np.float32)
    for before, pick in pairwise(picks):
        nearest = np.minimum(nearest, np.linalg.norm(rows - rows[before], axis=1))
        nearest[before] = -np.inf
        if nearest[pick] < nearest.max() - tie:
            return False
    return True


def fit_row(bench: Workbench, device: str = "cpu", limit: float | None = 0.35) -> Row:
    """Measure a fit over HTTP, each into a ROI of its own: images that a ROI has learned are not extracted again."""
    service, reference = bench.callers(device)
    pngs = bench.pngs()
    answers: dict[str, dict[str, Any]] = {}

    def fits(name: str, caller: Client) -> Callable[[], None]:
        forms = iter([learn(f"fit-{number}", pngs) for number in range(bench.plan.fit_rounds)])
        return lambda: answers.update({name: caller.send(next(forms)).ok()})

    figures = duel(fits("service", service), fits("reference", reference), rounds=bench.plan.fit_rounds, warm=False)
    ours, theirs = answers["service"], answers["reference"]
    laps = ", ".join(f"{name} {ours['timings_ms'][name] / 1e3:.2g} s" for name in ("extract", "coreset"))
    return Row(
        work=f"/fit_ok, {bench.plan.n_images} images, {device.partition(':')[0].upper()}",
        **figures,
        limit=limit,
        same_result=all(ours[name] == theirs[name] for name in ("n_embeddings", "coreset_size")),
        remark=f"both over HTTP, with leave-one-out scores; of it {laps}",
    )


def infer_row(bench: Workbench, device: str = "cpu", limit: float | None = 0.40) -> Row:
    """Measure an inspection over HTTP, one client."""
    service, reference = bench.fitted(device)
    request = inspect(FITTED, encode_png(bench.defective))
    found, expected = (caller.send(request).ok() for caller in (service, reference))
    off = abs(found["score"] / expected["score"] - 1)
    figures = duel(
        lambda: service.send(request),
        lambda: reference.send(request),
        rounds=bench.plan.rounds,
        calls=bench.plan.calls,
    )
    return Row(
        work=f"/infer, {bench.plan.size_px} px, one client, {device.partition(':')[0].upper()}",
        **figures,
        limit=limit,
        same_result=off <= _SAME_SCORE and found["params"]["scoring"] == "new",
        remark=f"both over HTTP; scores differ by {100 * off:.1f} %",
    )


def cuda_rows(bench: Workbench) -> Sequence[Row]:
    """Measure on the CUDA device, where there is one."""
    if cuda_device() is None:
        size_px, n_images = bench.plan.size_px, bench.plan.n_images
        work = (f"extract one {size_px} px ROI", f"/infer, {size_px} px, one client", f"/fit_ok, {n_images} images")
        return [Row(work=f"{name}, CUDA", remark=NO_CUDA) for name in work]
    device = bench.features_on("auto").device
    return [extract_row(bench, device, None), infer_row(bench, device, None), fit_row(bench, device, None)]
