"""Kill -9 at random moments: what was acknowledged is there after the restart, whole, and inspections go on.

    python -m reliability.kills [--kills 200] [--seed 0] [--arenas 2] [--json kills.json] [--update docs/reliability.md]

Each arena is a server on a folder of its own, with four clients that fit, replace, calibrate, bring versions back,
upload, delete, clear and copy recipes, each at a ROI of its own, one call after the other. The server is killed, at
times while it sleeps, mostly in the middle of a call or of a write; then it is started again on what is left. A client
knows what its ROI must hold: what it was answered for, and of the one call that was cut off either all or nothing (see
``reliability/worlds.py``).
What a memory must be and score is computed in this process from the images alone.
"""

from __future__ import annotations

import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from backend.artifacts.files import ABANDONED_S
from backend.demo.client import CallCutOff
from reliability.checks import problems_after_a_crash
from reliability.command import run_command
from reliability.moments import MOMENTS, Pulse, temporary_files, wait_for
from reliability.outcomes import Claim, Outcome
from reliability.recovery import KillTally, RecoveryCheck
from reliability.reference import Reference
from reliability.servers import Server
from reliability.workers import at_work
from reliability.worlds import World

_AGED_S = 2 * ABANDONED_S


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much; each field is an option of the command."""

    kills: int = field(default=200, metadata={"help": "in all arenas together"})
    clients: int = field(default=4, metadata={"help": "of each arena"})
    arenas: int = field(default=2, metadata={"help": "servers at a time"})
    seed: int = field(default=0, metadata={"help": "draws calls and moments"})


def run(plan: Plan, folder: Path, *, step: Callable[[], None] = lambda: None) -> Outcome:
    """Return what came of the kills.

    Args:
        plan: How much.
        folder: For the servers' models and logs.
        step: Called after each kill.
    """
    tally, started_s = KillTally(), time.perf_counter()
    shares = [len(range(arena, plan.kills, plan.arenas)) for arena in range(plan.arenas)]
    with closing(Reference(folder / "reference")) as reference, ThreadPoolExecutor(plan.arenas) as pool:
        arenas = [
            _Arena(folder / f"arena-{number}", f"{plan.seed}-{number}", plan.clients, reference, tally)
            for number in range(plan.arenas)
        ]
        running = [pool.submit(arena.run, share, step) for arena, share in zip(arenas, shares, strict=True)]
        for future in running:
            future.result()
    return _outcome(tally, time.perf_counter() - started_s)


class _Arena:
    def __init__(self, folder: Path, seed: str, clients: int, reference: Reference, tally: KillTally) -> None:
        self._server = Server(folder)
        self._rng = random.Random(seed)
        self._tally = tally
        self._worlds = [World(roi_id=f"roi-{number}") for number in range(clients)]
        self._check = RecoveryCheck(self._server.models_dir, self._rng, reference, tally)
        self._pulse = Pulse()
        self._orphans: set[str] = set()

    def run(self, kills: int, step: Callable[[], None]) -> None:
        with self._server:
            for number in range(kills + 1):
                restart_s = self._server.start()
                with self._tally.lock:
                    self._tally.restarts_s.append(restart_s)
                with self._server.client() as client:
                    for world in self._worlds:
                        self._check.world(world, client)
                self._tally.findings.extend("verify", problems_after_a_crash(self._server.models_dir))
                if number < kills:
                    self._work_and_kill(number)
                    step()
            self._tally.findings.extend("log", self._failures_in_the_log())

    def _work_and_kill(self, number: int) -> None:
        clients = [partial(self._work, world, random.Random(self._rng.random())) for world in self._worlds]
        with at_work(clients, self._tally.findings) as stop:
            if number == 0:  # on a busy machine nothing might be acknowledged before the last kill
                self._pulse.answered(3)
            wait_for(MOMENTS[number % len(MOMENTS)], self._rng, self._pulse, self._server.models_dir)
            stop.set()
            self._server.kill()
        orphans = {*temporary_files(self._server.models_dir)}
        age(orphans)
        with self._tally.lock:
            self._tally.kills += 1
            self._tally.kills_in_a_write += not orphans <= self._orphans
        self._orphans |= orphans

    def _work(self, world: World, rng: random.Random, dying: threading.Event) -> None:
        with self._server.client() as client:
            while not dying.is_set():
                try:
                    call = world.draw(rng, client, copy_as=f"copy-{world.roi_id}-{rng.getrandbits(32):x}")
                    world.in_flight = call
                    self._pulse.begin(call.kind)
                    started_s = time.perf_counter()
                    answer = world.send(call, client)
                except CallCutOff as error:
                    if not dying.is_set():
                        self._tally.findings.add("cut off", f"{error}, by a server that nobody killed")
                    return
                self._pulse.end(call.kind, time.perf_counter() - started_s)
                is_done = answer.status in (200, 201) and (not call.as_job or answer.json["state"] == "done")
                if not is_done:
                    self._tally.findings.add("refused", f"{call}: {answer}")
                    world.in_flight = world.job_id = None
                    continue
                world.acknowledge()
                with self._tally.lock:
                    self._tally.calls[call.kind] += 1

    def _failures_in_the_log(self) -> list[str]:
        log = self._server.log.read_text(encoding="utf-8", errors="replace")
        where = log.find("Traceback")
        return [] if where < 0 else [log[where : where + 1500]]


def age(paths: Iterable[str]) -> None:
    """Make temporary files and folders older than a sweep leaves alone, as if the restart came two days later."""
    then_s = time.time() - _AGED_S
    for path in paths:
        for entry in (Path(path), *Path(path).rglob("*")):
            os.utime(entry, (then_s, then_s))


def _outcome(tally: KillTally, elapsed_s: float) -> Outcome:
    findings = tally.findings
    n_cut_off, n_happened = tally.cut_off.total(), tally.happened.total()
    n_lost = findings.count("lost", "unreadable", "recipe", "job", "image")
    return Outcome(
        name="kills",
        claims=(
            Claim(
                text="After every kill, what was acknowledged is there, and of a call that was cut off all or nothing",
                figure=f"{tally.kills} kills, {tally.kills_in_a_write} of them in the middle of a write; "
                f"{tally.calls.total()} calls acknowledged, {n_cut_off} cut off, of which {n_happened} are "
                f"found done; {n_lost} contradictions",
                holds=n_lost == 0 and tally.kills > 0,
            ),
            Claim(
                text="After every restart inspections work, with the score and threshold of the generation they name",
                figure=f"{tally.inspections} inspections, {findings.count('inspection')} otherwise",
                holds=findings.count("inspection") == 0 and tally.inspections > 0,
            ),
            Claim(
                text="After every restart the last versions of each ROI are there, and each holds what it held",
                figure=f"{tally.versions} versions looked at, {findings.count('version')} otherwise",
                holds=findings.count("version") == 0,  # a short run may end before the first switch
            ),
            Claim(
                text="After every restart `roi-inspector verify` finds nothing",
                figure=f"{len(tally.restarts_s)} runs, {findings.count('verify')} problems",
                holds=findings.count("verify") == 0,
            ),
            Claim(
                text="No call is refused, no client hangs, and no server fails or logs a traceback",
                figure=f"{findings.count('refused', 'hang', 'cut off', 'log')}",
                holds=findings.count("refused", "hang", "cut off", "log") == 0,
            ),
        ),
        figures={
            "kills": tally.kills,
            "kills_in_a_write": tally.kills_in_a_write,
            "acknowledged": dict(tally.calls),
            "cut_off": dict(tally.cut_off),
            "cut_off_and_done": dict(tally.happened),
            "inspections": tally.inspections,
            "files_read": tally.files_read,
            "versions": tally.versions,
            "restart_median_s": statistics.median(tally.restarts_s),
            "restart_max_s": max(tally.restarts_s),
            "findings": dict(findings.counts),
            "elapsed_s": elapsed_s,
        },
        findings=findings.words,
    )


if __name__ == "__main__":
    run_command("kills", __doc__, Plan, run, lambda plan: plan.kills)
