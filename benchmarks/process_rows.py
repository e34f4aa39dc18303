"""The rows without a reference: an inspection without the network, starting up, and the memory of the process."""

from __future__ import annotations

import base64
import shutil
import statistics
import time
from collections.abc import Sequence

import cv2
import numpy as np

from backend.imaging.image_codec import encode_png
from benchmarks.servers import ROLE, SERVICE, STUBBED, inspect, roi, serving
from benchmarks.stub import stub_environment
from benchmarks.workbench import FITTED, LOCAL, Row, Workbench

_REST_MS, _LOCAL_MS, _HEALTH_S, _ROIS_MB = 12.0, 12.0, 3.0, 400.0
_HOT = 0.05
_LAPS = ("decode", "post", "encode")


def rest_rows(bench: Workbench) -> Sequence[Row]:
    """Measure a whole inspection whose extractor answers at once, less its search, and tell where its time goes."""
    service, _ = bench.fitted()
    request = inspect(FITTED, encode_png(bench.defective))
    heat = service.send(request).ok()
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(heat["heatmap_png_base64"]), np.uint8), cv2.IMREAD_GRAYSCALE)
    # A part whose defects cover a twentieth of it, in several regions.
    limit = float(np.percentile(pixels, 100 * (1 - _HOT))) / 256 * heat["params"]["heatmap_scale"]
    service.post("/calibrate_ng", {**roi(FITTED), "ok_scores": [limit] * bench.plan.n_images}).ok()
    settings = bench.settings(bench.models_dir())
    stubbed = stub_environment(bench.query, bench.features, bench.folder / "stub.npz")
    times_ms, answers = [], []
    with serving(STUBBED, bench.folder, settings=settings, environment=stubbed) as running:
        running.seconds_until_ready()
        with running.caller() as caller:
            caller.send(request).ok()
            for _ in range(4 * bench.plan.rounds * bench.plan.calls):
                started_s = time.perf_counter()
                answer = caller.send(request)
                times_ms.append((time.perf_counter() - started_s) * 1e3)
                answers.append(answer.ok())
    laps = {name: [answer["timings_ms"][name] for answer in answers] for name in ("search", *_LAPS)}
    rest_ms = [whole - search for whole, search in zip(times_ms, laps["search"], strict=True)]
    return [
        Row(
            work=f"/infer without network and search, {bench.plan.size_px} px",
            service=statistics.median(rest_ms),
            n_rounds=len(rest_ms),
            limit=_REST_MS,
            remark=f"round trip over HTTP, {len(answers[0]['regions'])} regions on {100 * _HOT:g} % of the image, "
            "base64 heat map; of it "
            + ", ".join(f"{name} {statistics.median(laps[name]):.1f} ms" for name in _LAPS)
            + f"; the search beside it {statistics.median(laps['search']):.1f} ms",
        )
    ]


def local_search_rows(bench: Workbench) -> Sequence[Row]:
    """Measure what the search of an aligned ROI takes more than that of the same images with the coreset alone."""
    service = bench.fitted_locally()
    png = encode_png(bench.defective)
    requests = {roi_id: inspect(roi_id, png) for roi_id in (FITTED, LOCAL)}
    search_ms: dict[str, list[float]] = {roi_id: [] for roi_id in requests}
    for number in range(1 + 2 * bench.plan.rounds * bench.plan.calls):
        for roi_id, request in requests.items():
            answer = service.send(request).ok()
            if number:
                search_ms[roi_id].append(answer["timings_ms"]["search"])
    alone, local = (statistics.median(search_ms[roi_id]) for roi_id in (FITTED, LOCAL))
    return [
        Row(
            work=f"search of an aligned ROI of {bench.plan.n_images} images, beside that of its coreset",
            service=local - alone,
            n_rounds=len(search_ms[LOCAL]),
            limit=_LOCAL_MS,
            remark=f"{local:.1f} ms and {alone:.1f} ms, in turns",
        )
    ]


def start_and_memory_rows(bench: Workbench) -> Sequence[Row]:
    """Measure starts with an empty and with a filled engine cache, and what cached ROIs hold."""
    bench.fitted_locally()
    models = bench.folder / "models-none"
    health_s, ready_s = [], []
    resident_mb: float | None = None
    for _ in range(1 + bench.plan.starts):
        with serving(SERVICE, bench.folder, settings=bench.settings(models)) as running:
            health_s.append(running.seconds_until_health_answers())
            ready_s.append(running.seconds_until_ready())
            resident_mb = running.resident_mb()
    return [
        Row(
            work="start-up until /health answers",
            service=max(health_s),
            unit="s",
            n_rounds=len(health_s),
            limit=_HEALTH_S,
            remark="the slowest of all starts",
        ),
        Row(work="start-up until ready, engine cache empty", service=ready_s[0], unit="s", n_rounds=1),
        Row(
            work="start-up until ready, engine cache filled",
            service=statistics.median(ready_s[1:]),
            unit="s",
            n_rounds=bench.plan.starts,
        ),
        _memory_row(bench, resident_mb),
    ]


def _memory_row(bench: Workbench, without_mb: float | None) -> Row:
    """Measure a fresh process after it has inspected with each of many ROIs beside one that has inspected nothing."""
    n_rois, plan = bench.plan.n_rois, bench.plan
    work = f"resident memory of {n_rois} cached aligned ROIs of {plan.n_images} images, {100 * plan.coreset_rate:g} %"
    if without_mb is None:
        return Row(work=work, unit="MB", remark="not measured: this system does not tell")
    models = bench.folder / "models-many"
    shutil.copytree(bench.folder / "models-none" / ".engines", models / ".engines")
    fitted = bench.models_dir() / ROLE / LOCAL
    for number in range(n_rois):
        target = models / ROLE / f"roi-{number}"
        target.mkdir(parents=True)
        for name in ("memory.npz", "calib.json"):
            shutil.copy(fitted / name, target / name)
    png = encode_png(bench.defective)
    with serving(SERVICE, bench.folder, settings=bench.settings(models)) as running:
        running.seconds_until_ready()
        with running.caller() as caller:
            for number in range(n_rois):
                caller.send(inspect(f"roi-{number}", png)).ok()
        with_mb = running.resident_mb()
    if with_mb is None:
        raise OSError("the server process is gone")
    return Row(
        work=work,
        service=with_mb - without_mb,
        unit="MB",
        n_rounds=1,
        limit=_ROIS_MB,
        remark=f"{with_mb:.0f} MB after an inspection with each, {without_mb:.0f} MB of a process before its first",
    )
