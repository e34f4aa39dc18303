"""How long the service takes for each screen of the engineer's page, with many ROIs and decisions.

    python -m benchmarks.pages [--rois 50] [--decisions 100000] [--limit-ms 300]

Each screen is asked for in turn, as a browser does, from a server in a process of its own; what counts is the median of
the rounds after the first, which also shows that nothing is kept that makes a later one slower. Exits with 1 where a
screen takes longer than the limit.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import httpx

from backend.artifacts.model_key import DEFAULT_RECIPE, ModelKey
from backend.demo.demo_parts import rendered_parts
from backend.demo.service_process import ServiceProcess, environment_with
from backend.history.database import FILE_NAME, open_to_write
from backend.history.record import Decision
from backend.history.sketch import SERIES
from backend.history.writing import Writer

SCREENS = ("", "/learn", "/threshold", "/why", "/try", "/trend", "/versions", "/system")
_ROLE, _MM_PER_PX, _DAYS = "Inspection", 0.2, 30


def main(arguments: list[str] | None = None) -> int:
    """Print a table of the screens, and return 1 if one misses the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rois", type=int, default=50)
    parser.add_argument("--decisions", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--limit-ms", type=float, default=300.0)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        environment = environment_with({"models_dir": models, "extractor": "filter-bank"})
        with ServiceProcess(Path(folder) / "server.log", environment) as server:
            server.launch()
            server.wait_until_ready()
            _learn_one(server)
            server.stop()
            _multiply(models, chosen.rois)
            _decide(models / FILE_NAME, chosen.rois, chosen.decisions)
            server.launch()
            server.wait_until_ready()
            medians_ms = _ask(server, chosen.rounds)
    print(f"{chosen.rois} ROIs, {chosen.decisions} decisions, median of {chosen.rounds} rounds:")
    for screen, median_ms in medians_ms.items():
        print(f"  /ui{screen:<11} {median_ms:7.1f} ms{'' if median_ms < chosen.limit_ms else '  MISSED'}")
    return int(max(medians_ms.values()) >= chosen.limit_ms)


def _learn_one(server: ServiceProcess) -> None:
    parts = rendered_parts(40, _MM_PER_PX)
    roi = {"role_id": _ROLE, "roi_id": _roi(0)}
    with _client(server) as client:
        for label, some in (("ok", parts.fit), ("ng", parts.defective)):
            pngs = [cv2.imencode(".png", part.image_bgr)[1].tobytes() for part in some]
            files = [("images", (f"{number}.png", png)) for number, png in enumerate(pngs)]
            client.post(f"/datasets/{label}/upload", data=roi, files=files).raise_for_status()
        form = {**roi, "mm_per_px": str(_MM_PER_PX), "use_dataset": "true"}
        client.post("/fit_ok", data=form).raise_for_status()
        client.post("/calibrate_ng", json=roi).raise_for_status()


def _multiply(models: Path, n_rois: int) -> None:
    for number in range(1, n_rois):
        shutil.copytree(models / _ROLE / _roi(0), models / _ROLE / _roi(number))


def _decide(path: Path, n_rois: int, n_decisions: int) -> None:
    writer, rng, now = Writer(open_to_write(path), n_decisions), random.Random(0), time.time()
    for number in range(n_rois):
        key = ModelKey(recipe_id=DEFAULT_RECIPE, role_id=_ROLE, roi_id=_roi(number), model_key=_roi(number))
        n = n_decisions // n_rois
        writer.write([_decision(key, now - _DAYS * 86_400 * (1 - place / n), rng) for place in range(n)])
    writer.close()


def _decision(key: ModelKey, at: float, rng: random.Random) -> Decision:
    score, threshold = max(0.01, rng.gauss(0.17, 0.03)), 0.25
    decision, memory = "ng" if score > threshold else "ok", "9a3f" * 16
    box = (*(10, 20, 14, 6), 2.4, score) if decision == "ng" else (None,) * 6
    row = (decision, score, threshold, "area", "defect" if decision == "ng" else None, "ok", "level", 0.1)
    row += (int(decision == "ng"), *box, None, "part.png", memory, False, None)
    values = [(number, rng.gauss(100, 3)) for name, number in SERIES.items() if name not in ("score", "ratio")]
    return Decision(
        key=key,
        at=at,
        row=row,
        values=(*values, (SERIES["score"], score), (SERIES["ratio"], score / threshold)),
        decision=decision,
        ratio=score / threshold,
        is_foreign=False,
        is_learned=False,
        memory=f"{memory[:16]} area",
    )


def _ask(server: ServiceProcess, rounds: int) -> dict[str, float]:
    times_ms: dict[str, list[float]] = {screen: [] for screen in SCREENS}
    with _client(server) as client:
        for _ in range(rounds + 1):
            for screen in SCREENS:
                begun = time.perf_counter()
                client.get(f"/ui{screen}", params={"role_id": _ROLE, "roi_id": _roi(0)}).raise_for_status()
                times_ms[screen].append(1000 * (time.perf_counter() - begun))
    return {screen: statistics.median(found[1:]) for screen, found in times_ms.items()}


def _client(server: ServiceProcess) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=300, trust_env=False)


def _roi(number: int) -> str:
    return f"inspection-{number + 1}"


if __name__ == "__main__":
    sys.exit(main())
