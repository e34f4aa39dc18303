"""A long steady day in short: inspections, and now and then everything else; memory stays flat and nothing leaks.

    python -m reliability.soak [--minutes 30] [--clients 3] [--json soak.json] [--update docs/reliability.md]

A few clients inspect at a steady pace, some with the heat map as a file; beside them one client fits, calibrates,
uploads, deletes, runs jobs and inspects data sets, round after round, each round leaving the folder as it was. Every
few seconds the server's memory, descriptors, threads and sockets and the size of the models folder are read.

The first quarter is warm-up: caches fill, threads start, the heap finds its size. Flat means that the median of the
last quarter's resident memory lies within 3 % of the second quarter's: medians, because a single reading swings with
the request that it meets; quarters, because a leak of a page per request shows over that time.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from backend.demo.client import Answer, CallCutOff, Client
from backend.demo.service_process import ServiceFailed
from backend.services.jobs import KEPT_JOBS
from benchmarks.vitals import Vitals, folder_mb, vitals
from reliability import parts
from reliability.checks import folder_problems, leftovers
from reliability.command import run_command
from reliability.outcomes import Claim, Outcome, Tally
from reliability.servers import Server
from reliability.workers import at_work

FLAT = 0.03
"""How far the last quarter's median memory may lie above the second quarter's."""

_ROI, _BUSY_ROI = "steady", "busy"
_FITTED = range(8)
_INSPECTED = range(200, 208)
_PAUSE_S = 0.05
_ROUND_PAUSE_S = 1.0
_SAMPLES = 360
_SHORTEST_TICK_S = 0.25
_FINAL_STATES = {"done", "failed", "cancelled", "lost"}
_MIN_SAMPLES = 8
_FAILURES = ("refused", "cut off", "hang")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much; each field is an option of the command."""

    minutes: float = field(default=30.0, metadata={"help": "of load"})
    clients: int = field(default=3, metadata={"help": "that inspect"})

    @property
    def seconds(self) -> float:
        """The same in seconds."""
        return 60 * self.minutes


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The server and its folder at one moment of the load.

    Attributes:
        at_s: Since its beginning, s.
        vitals: What the process holds.
        folder_mb: The size of the models folder without its jobs.
        jobs: Jobs that are kept; the service keeps the newest few hundred.
    """

    at_s: float
    vitals: Vitals
    folder_mb: float
    jobs: int


@dataclass
class _Tally(Tally):
    rounds: int = 0


def run(plan: Plan, folder: Path, *, step: Callable[[], None] = lambda: None) -> Outcome:
    """Return what came of the load.

    Args:
        plan: How much.
        folder: For the server's models and log.
        step: Called after each sample.
    """
    tally, started_s = _Tally(), time.perf_counter()
    with Server(folder) as server:
        server.start()
        scores = _prepare(server)
        calls = [(partial(_inspect_once, scores, first, tally), _PAUSE_S) for first in range(plan.clients)]
        calls.append((partial(_round, tally), _ROUND_PAUSE_S))
        with at_work([partial(_loop, server, call, pause_s, tally) for call, pause_s in calls], tally.findings):
            samples = _watch(server, plan, tally, step)
        server.stop()
        tally.findings.extend("folder", [*folder_problems(server.models_dir), *leftovers(server.models_dir)])
    return _outcome(plan, tally, samples, time.perf_counter() - started_s)


def _prepare(server: Server) -> dict[int, float]:
    """Fit and calibrate two ROIs; return the scores of the parts that are inspected from then on."""
    with server.client() as client:
        for roi_id in (_ROI, _BUSY_ROI):
            fitted = client.send(parts.fit(roi_id, _FITTED))
            calibrated = client.post("/calibrate_ng", {**parts.roi(roi_id), "mm_per_px": parts.MM_PER_PX})
            if (fitted.status, calibrated.status) != (200, 200):
                raise ServiceFailed(f"the server does not learn: {fitted}; {calibrated}")
        return {image: client.send(parts.infer(_ROI, image)).json["score"] for image in _INSPECTED}


def _loop(server: Server, call: Callable[[Client], None], pause_s: float, tally: _Tally, stop: threading.Event) -> None:
    with server.client() as client:
        while not stop.wait(pause_s):
            try:
                call(client)
            except CallCutOff as error:
                tally.findings.add("cut off", str(error))


def _inspect_once(scores: dict[int, float], first: int, tally: _Tally, client: Client) -> None:
    with tally.lock:
        number = tally.calls["inspect"] + first
    image = _INSPECTED[number % len(_INSPECTED)]
    heatmap = ("base64", "path", "none")[number % 3]
    answer = client.send(parts.infer(_ROI, image, heatmap=heatmap))
    if tally.is_done("inspect", answer) and answer.json["score"] != scores[image]:
        tally.findings.add("score", f"part {image}: {answer.json['score']}, at the beginning {scores[image]}")


def _round(tally: _Tally, client: Client) -> None:
    """Do everything that a service does beside inspecting, and leave the ROI as it was."""
    ids = parts.roi(_BUSY_ROI)
    steps: list[tuple[str, Callable[[], Answer]]] = [
        ("fit", lambda: client.send(parts.fit(_BUSY_ROI, range(8, 12)))),
        ("calibrate", lambda: client.post("/calibrate_ng", {**ids, "mm_per_px": parts.MM_PER_PX})),
        ("upload", lambda: client.send(parts.upload(_BUSY_ROI, "ng", range(1000, 1003)))),
        ("list", lambda: client.get("/datasets/list", **ids)),
        ("inspect data set", lambda: client.post("/infer_dataset", {**ids, "default_mm_per_px": parts.MM_PER_PX})),
        ("job", lambda: _job(client)),
        ("manifest", lambda: client.get("/manifest", **ids)),
        ("health", lambda: client.get("/health")),
        ("metrics", lambda: client.get("/metrics")),
        ("clear", lambda: client.delete("/datasets/clear", **ids, label="ng")),
        ("replace", lambda: client.send(parts.fit(_BUSY_ROI, _FITTED, mode="replace"))),
    ]
    for kind, call in steps:
        answer = call()
        if tally.is_done(kind, answer) and kind == "job" and answer.json["state"] != "done":
            tally.findings.add("refused", f"job: {answer.json}")
    with tally.lock:
        tally.rounds += 1


def _job(client: Client) -> Answer:
    answer = client.send(parts.fit(_BUSY_ROI, range(12, 14)), Prefer="respond-async")
    if answer.status != 202:
        return answer
    path = answer.json["status_url"]
    while True:
        answer = client.get(path)
        if answer.status != 200 or answer.json["state"] in _FINAL_STATES:
            return answer
        time.sleep(0.02)


def _watch(server: Server, plan: Plan, tally: _Tally, step: Callable[[], None]) -> list[Sample]:
    """Return samples over the whole time, and until a round is done; none where the system does not tell."""
    samples: list[Sample] = []
    tick_s = max(_SHORTEST_TICK_S, plan.seconds / _SAMPLES)
    started_s = time.monotonic()
    while (at_s := time.monotonic() - started_s) < plan.seconds or tally.rounds == 0 or 0 < len(samples) < _MIN_SAMPLES:
        held = vitals(server.pid)
        if held is not None:
            jobs = server.models_dir / ".jobs"
            size_mb = folder_mb(server.models_dir) - folder_mb(jobs)
            samples.append(Sample(at_s=at_s, vitals=held, folder_mb=size_mb, jobs=sum(1 for _ in jobs.glob("*.json"))))
        step()
        time.sleep(tick_s)
    return samples


def quarters(samples: Sequence[Sample], figure: Callable[[Sample], float]) -> list[float]:
    """Return the medians of a figure in the four quarters of at least four samples, taken at a steady pace."""
    n = len(samples)
    return [statistics.median(map(figure, samples[n * k // 4 : n * (k + 1) // 4])) for k in range(4)]


def growth_claims(samples: Sequence[Sample]) -> list[Claim]:
    """Return what the samples say: the last quarter beside the second, after the first as a warm-up."""
    if len(samples) < _MIN_SAMPLES:
        return [Claim(text="Memory stays flat", figure="not measured: this system does not tell", holds=False)]
    resident = quarters(samples, lambda one: one.vitals.resident_mb)
    descriptors = quarters(samples, lambda one: one.vitals.descriptors)
    sockets = quarters(samples, lambda one: one.vitals.sockets)
    threads = quarters(samples, lambda one: one.vitals.threads)
    folder = quarters(samples, lambda one: one.folder_mb)
    most_jobs = max(one.jobs for one in samples)
    grown = resident[3] / resident[1] - 1
    return [
        Claim(
            text=f"Resident memory is flat: the last quarter's median within {FLAT:.0%} of the second's",
            figure=f"{' → '.join(f'{value:.1f}' for value in resident)} MB by quarters ({grown:+.2%})",
            holds=grown <= FLAT,
        ),
        Claim(
            text="No descriptor, socket or thread leaks",
            figure=f"medians by quarters: descriptors {_row(descriptors)}, sockets {_row(sockets)}, "
            f"threads {_row(threads)}",
            # Between two calls a client's connection may be there or not, and so may its thread.
            holds=all(values[3] <= values[1] + 1 for values in (descriptors, sockets, threads)),
        ),
        Claim(
            text="The models folder does not grow under rounds that leave it as it was",
            figure=f"{' → '.join(f'{value:.2f}' for value in folder)} MB by quarters, and at most {most_jobs} jobs, of "
            f"which {KEPT_JOBS} are kept",
            # A reading meets a fit half-way: its uploads are there, and what they replace is there still.
            holds=folder[3] <= 1.2 * folder[1] and most_jobs <= KEPT_JOBS + 1,
        ),
    ]


def _row(values: Sequence[float]) -> str:
    return " → ".join(f"{value:g}" for value in values)


def _outcome(plan: Plan, tally: _Tally, samples: Sequence[Sample], elapsed_s: float) -> Outcome:
    findings = tally.findings
    per_s = tally.calls["inspect"] / plan.seconds
    figures: dict[str, Any] = {
        "calls": dict(tally.calls),
        "busy": tally.busy,
        "samples": [
            {**asdict(one.vitals), "at_s": one.at_s, "folder_mb": one.folder_mb, "jobs": one.jobs} for one in samples
        ],
        "findings": dict(findings.counts),
        "elapsed_s": elapsed_s,
    }
    return Outcome(
        name="soak",
        claims=[
            *growth_claims(samples),
            Claim(
                text="Every call is answered, and the same part gets the same score to the end",
                figure=f"{plan.seconds / 60:g} min, {tally.calls['inspect']} inspections ({per_s:.1f} per s) and "
                f"{tally.rounds} rounds of everything else; {tally.busy} times 503, {findings.count(*_FAILURES)} "
                f"failures, {findings.count('score')} other scores",
                holds=findings.count(*_FAILURES, "score") == 0 and tally.rounds > 0,
            ),
            Claim(
                text="Afterwards `roi-inspector verify` finds nothing, and no lock or temporary file is left",
                figure=f"{findings.count('folder')}",
                holds=findings.count("folder") == 0,
            ),
        ],
        figures=figures,
        findings=findings.words,
    )


def n_steps(plan: Plan) -> int:
    """Return about how many samples a plan takes."""
    return int(plan.seconds / max(_SHORTEST_TICK_S, plan.seconds / _SAMPLES))


if __name__ == "__main__":
    run_command("soak", __doc__, Plan, run, n_steps)
