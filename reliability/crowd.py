"""Several processes on one models folder, each with a crowd of clients: every answer is what a single process gives.

    python -m reliability.crowd [--minutes 3] [--processes 4] [--clients 8] [--json crowd.json] [--update DOCUMENT]

The clients of all processes inspect, fit, calibrate and upload at the same five ROIs at the same time. Each answer
names the generation that it comes from (``memory_checksum``). Fits only add, so the memories of a ROI form a chain, and
which parts the n-th one holds follows from the acknowledged fits alone: afterwards each is learned again in this
process, and every score, threshold and decision is computed again and compared for equality, to the last bit.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from backend.demo.client import CallCutOff, Client
from reliability import parts
from reliability.checks import folder_problems, leftovers
from reliability.command import run_command
from reliability.outcomes import Claim, Outcome, Tally
from reliability.reference import Reference
from reliability.servers import Server
from reliability.workers import at_work
from reliability.worlds import NG_POOL

ROIS = tuple(f"crowd-{number}" for number in range(5))
_FIRST = range(3)
_OK_POOL = range(60)
"""Opened one after the other over the whole time, so that there are new generations to the end."""

_INSPECTED = (0, 5, 17, *range(3000, 3006))
"""Learned from the start, learned sooner or later, and never learned."""

_CALLS = ("infer",) * 30 + ("fit",) * 2 + ("calibrate",) * 3 + ("upload",) * 2 + ("list",) * 2
_TICK_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much; each field is an option of the command."""

    minutes: float = field(default=3.0, metadata={"help": "how long the crowd works"})
    processes: int = field(default=4, metadata={"help": "on the one folder"})
    clients: int = field(default=8, metadata={"help": "of each process"})
    seed: int = field(default=0, metadata={"help": "draws the calls"})
    inspections: int = field(default=20, metadata={"help": "at least, whatever the time; and one new generation"})

    @property
    def seconds(self) -> float:
        """How long the crowd works, s."""
        return 60 * self.minutes


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """An acknowledged fit: what it brought, and what the memory was then."""

    images: frozenset[int]
    checksum: str
    n_ok_total: int


@dataclass
class _Tally(Tally):
    fits: dict[str, list[_Fit]] = field(default_factory=lambda: defaultdict(list))
    marks: dict[str, set[float]] = field(default_factory=lambda: defaultdict(set))
    uploaded: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    inspections: list[tuple[str, int, Mapping[str, Any]]] = field(default_factory=list)
    calibrations: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)


def run(plan: Plan, folder: Path, *, step: Callable[[], None] = lambda: None) -> Outcome:
    """Return what came of the crowd.

    Args:
        plan: How much.
        folder: For the models and logs.
        step: Called once a second.
    """
    tally, started_s = _Tally(), time.perf_counter()
    for image in (*_OK_POOL, *_INSPECTED, *NG_POOL):
        parts.png(image)  # before the clock starts
    with ExitStack() as stack:
        servers = [stack.enter_context(Server(folder, name=f"server-{n}")) for n in range(plan.processes)]
        for server in servers:
            server.start()
        with servers[0].client() as client:
            for roi_id in ROIS:
                _fit(client, roi_id, _FIRST, tally)
                _calibrate(client, roi_id, 1.0, tally)
        _let_the_crowd_work(servers, plan, tally, step)
        with closing(Reference(folder / "reference")) as reference:
            memories = {roi_id: _memories(roi_id, tally, reference) for roi_id in ROIS}
            for server in servers:
                _check_the_end(server, memories, tally, reference)
            _check_the_answers(memories, tally, reference)
        for server in servers:
            server.stop()
    tally.findings.extend("left behind", leftovers(folder / "models"))
    tally.findings.extend("verify", folder_problems(folder / "models"))
    return _outcome(plan, tally, memories, time.perf_counter() - started_s)


def _let_the_crowd_work(servers: Sequence[Server], plan: Plan, tally: _Tally, step: Callable[[], None]) -> None:
    started_s = time.monotonic()

    def n_open() -> int:
        share = min(1.0, (time.monotonic() - started_s) / plan.seconds)
        return len(_FIRST) + round(share * (len(_OK_POOL) - len(_FIRST)))

    clients = [
        partial(_work, server, random.Random(f"{plan.seed}-{n}-{m}"), n_open, tally)
        for n, server in enumerate(servers)
        for m in range(plan.clients)
    ]
    with at_work(clients, tally.findings):
        while (left_s := started_s + plan.seconds - time.monotonic()) > 0 or not _is_enough(plan, tally):
            time.sleep(max(0.01, min(_TICK_S, left_s)))
            step()


def _is_enough(plan: Plan, tally: _Tally) -> bool:
    with tally.lock:
        n_generations = len({fit.checksum for fits in tally.fits.values() for fit in fits})
        return len(tally.inspections) >= plan.inspections and n_generations > len(ROIS)


def _work(server: Server, rng: random.Random, n_open: Callable[[], int], tally: _Tally, stop: threading.Event) -> None:
    with server.client() as client:
        while not stop.is_set():
            roi_id, kind = rng.choice(ROIS), rng.choice(_CALLS)
            try:
                if kind == "infer":
                    _infer(client, roi_id, rng.choice(_INSPECTED), tally)
                elif kind == "fit":
                    _fit(client, roi_id, rng.sample(_OK_POOL[: n_open()], rng.randint(1, 3)), tally)
                elif kind == "calibrate":
                    _calibrate(client, roi_id, float(rng.randint(1, 50)), tally)
                elif kind == "upload":
                    _upload(client, roi_id, rng.sample(NG_POOL, 2), tally)
                else:
                    tally.is_done("list", client.get("/datasets/list", **parts.roi(roi_id)))
            except CallCutOff as error:
                tally.findings.add("cut off", str(error))


def _infer(client: Client, roi_id: str, image: int, tally: _Tally) -> None:
    answer = client.send(parts.infer(roi_id, image))
    if tally.is_done("infer", answer):
        with tally.lock:
            tally.inspections.append((roi_id, image, answer.json))


def _fit(client: Client, roi_id: str, images: Sequence[int], tally: _Tally) -> None:
    answer = client.send(parts.fit(roi_id, images))
    if tally.is_done("fit", answer):
        fit = _Fit(images=frozenset(images), checksum=answer.json["checksum"], n_ok_total=answer.json["n_ok_total"])
        with tally.lock:
            tally.fits[roi_id].append(fit)


def _calibrate(client: Client, roi_id: str, area_mm2_thr: float, tally: _Tally) -> None:
    with tally.lock:
        tally.marks[roi_id].add(area_mm2_thr)
    body = {**parts.roi(roi_id), "mm_per_px": parts.MM_PER_PX, "area_mm2_thr": area_mm2_thr}
    answer = client.post("/calibrate_ng", body)
    if tally.is_done("calibrate", answer):
        with tally.lock:
            tally.calibrations.append((roi_id, answer.json))


def _upload(client: Client, roi_id: str, images: Sequence[int], tally: _Tally) -> None:
    # Among the good ones, which nobody learns from here: bad ones would set the thresholds.
    if tally.is_done("upload", client.send(parts.upload(roi_id, "ok", images))):
        with tally.lock:
            tally.uploaded[roi_id].update(images)


def _memories(roi_id: str, tally: _Tally, reference: Reference) -> dict[str, frozenset[int]]:
    """Return what each memory of a ROI had learned, by checksum, in the order that they came.

    Fits only add, so a memory of n images holds what all fits brought that ended with at most n.
    """
    learned: frozenset[int] = frozenset()
    found: dict[str, frozenset[int]] = {}
    for fit in sorted(tally.fits[roi_id], key=lambda fit: fit.n_ok_total):
        learned |= fit.images
        if len(learned) != fit.n_ok_total:
            tally.findings.add("lost", f"{roi_id}: a fit ended with {fit.n_ok_total} images, not {len(learned)}")
        elif fit.checksum not in found:
            found[fit.checksum] = learned
            if reference.generation(learned).checksum != fit.checksum:
                tally.findings.add("memory", f"{roi_id}: the memory of {len(learned)} images is not a single process's")
    return found


def _check_the_end(
    server: Server, memories: Mapping[str, Mapping[str, frozenset[int]]], tally: _Tally, reference: Reference
) -> None:
    """Compare what a server tells at the end with all that was acknowledged, whoever acknowledged it."""
    with server.client() as client:
        for roi_id in ROIS:
            learned = frozenset().union(*(fit.images for fit in tally.fits[roi_id]))
            facts = client.get("/manifest", **parts.roi(roi_id)).json["fit"]
            if facts["n_ok_total"] != len(learned) or facts["checksum"] not in memories[roi_id]:
                tally.findings.add("lost", f"{roi_id}: {facts['n_ok_total']} images at the end, not {len(learned)}")
            answer = client.send(parts.infer(roi_id, parts.PROBE))
            if answer.status != 200 or answer.json["score"] != reference.score(learned):
                tally.findings.add("answer", f"{roi_id} at the end: {answer}; expected {reference.score(learned)}")
            listed = client.get("/datasets/list", **parts.roi(roi_id)).json["classes"]["ok"]["files"]
            if parts.numbers(listed, [*_OK_POOL, *NG_POOL]) & set(NG_POOL) != tally.uploaded[roi_id]:
                tally.findings.add("lost", f"{roi_id}: uploaded {sorted(tally.uploaded[roi_id])}, listed {listed}")


def _check_the_answers(
    memories: Mapping[str, Mapping[str, frozenset[int]]], tally: _Tally, reference: Reference
) -> None:
    for roi_id, image, answer in tally.inspections:
        learned = memories[roi_id].get(answer["params"]["memory_checksum"])
        if learned is None:
            tally.findings.add("answer", f"{roi_id}: a memory that no acknowledged fit made")
            continue
        score, threshold = reference.score(learned, image), reference.generation(learned).threshold
        assert threshold is not None
        expected = (score, threshold, "ng" if score > threshold else "ok", len(learned))
        found = (answer["score"], answer["threshold"], answer["decision"], answer["params"]["n_ok"])
        if found != expected or answer["params"]["area_mm2_thr"] not in tally.marks[roi_id]:
            tally.findings.add("answer", f"{roi_id}, part {image}: {found}, a single process gives {expected}")
    for roi_id, answer in tally.calibrations:
        learned = memories[roi_id].get(answer["memory_checksum"])
        if learned is None or answer["threshold"] != reference.generation(learned).threshold:
            tally.findings.add(
                "answer", f"{roi_id}: calibrated to {answer['threshold']}, of no known memory or another"
            )


def _outcome(
    plan: Plan, tally: _Tally, memories: Mapping[str, Mapping[str, frozenset[int]]], elapsed_s: float
) -> Outcome:
    findings, calls = tally.findings, tally.calls
    n_memories = sum(len(found) for found in memories.values())
    shown = ", ".join(f"{number} {kind}" for kind, number in sorted(calls.items()))
    n_fits = sum(len(fits) for fits in tally.fits.values())
    return Outcome(
        name="crowd",
        claims=(
            Claim(
                text="Every answer equals, to the last bit, what a single process gives for the generation it names",
                figure=f"{plan.processes} processes × {plan.clients} clients, {plan.minutes:g} min: {shown}; "
                f"{n_memories} generations of {len(ROIS)} ROIs, {len(tally.inspections)} inspections and "
                f"{len(tally.calibrations)} calibrations compared, {findings.count('answer', 'memory')} differ",
                holds=findings.count("answer", "memory") == 0 and n_memories > len(ROIS),
            ),
            Claim(
                text="Concurrent fits and uploads all count: what was acknowledged is in the memory and data set",
                figure=f"{n_fits} fits, {sum(map(len, tally.uploaded.values()))} images kept; "
                f"{findings.count('lost')} lost",
                holds=findings.count("lost") == 0,
            ),
            Claim(
                text="No call fails or hangs (503 when busy is an answer)",
                figure=f"{calls.total()} calls, {tally.busy} times 503, "
                f"{findings.count('refused', 'cut off', 'hang')} failures",
                holds=findings.count("refused", "cut off", "hang") == 0,
            ),
            Claim(
                text="No lock and no temporary file is left behind, and `roi-inspector verify` finds nothing",
                figure=f"{findings.count('left behind')} left, {findings.count('verify')} problems",
                holds=findings.count("left behind", "verify") == 0,
            ),
        ),
        figures={
            "calls": dict(calls),
            "busy": tally.busy,
            "generations": n_memories,
            "inspections": len(tally.inspections),
            "findings": dict(findings.counts),
            "elapsed_s": elapsed_s,
        },
        findings=findings.words,
    )


if __name__ == "__main__":
    run_command("crowd", __doc__, Plan, run, lambda plan: int(plan.seconds))
