"""Kill -9 at random moments: what was acknowledged is there after the restart, whole, and inspections go on.

    python -m reliability.kills [--kills 200] [--seed 0] [--arenas 2] [--json kills.json] [--update docs/reliability.md]

Each arena is a server on a folder of its own, with four clients that fit, replace, calibrate, upload, delete, clear and
copy recipes, each at a ROI of its own, one call after the other. The server and all its children are killed, some while
they sleep, most in the middle of a call or of a write; then it is started again on what is left. A client knows what
its ROI must hold: what it was answered for, and of the one call that was cut off either all or nothing (see
``reliability/worlds.py``). What a memory must be and score is computed in this process from the images alone.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from backend.artifacts.files import ABANDONED_S
from reliability import parts
from reliability.checks import problems_after_a_crash
from reliability.clients import CallCutOff, Client
from reliability.command import add_output_options, proved
from reliability.moments import MOMENTS, Pulse, temporary_files, wait_for
from reliability.outcomes import Claim, Findings, Outcome
from reliability.reference import Reference
from reliability.servers import Server
from reliability.worlds import NG_POOL, OK_POOL, RoiState, World, contradictions

_KEPT_COPIES = 2
_JOIN_S = 90.0
_AGED_S = 2 * ABANDONED_S


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much.

    Attributes:
        kills: In all arenas together.
        clients: Of each arena.
        arenas: Servers at a time.
        seed: Draws calls and moments.
    """

    kills: int = 200
    clients: int = 4
    arenas: int = 2
    seed: int = 0


@dataclass
class _Tally:
    """What all arenas have seen; changed under its lock."""

    findings: Findings = field(default_factory=Findings)
    acknowledged: Counter[str] = field(default_factory=Counter)
    cut_off: Counter[str] = field(default_factory=Counter)
    happened: Counter[str] = field(default_factory=Counter)
    restarts_s: list[float] = field(default_factory=list)
    kills: int = 0
    kills_in_a_write: int = 0
    inspections: int = 0
    files_read: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def run(plan: Plan, folder: Path, *, step: Callable[[], None] = lambda: None) -> Outcome:
    """Return what came of the kills.

    Args:
        plan: How much.
        folder: For the servers' models and logs.
        step: Called after each kill.
    """
    tally, started_s = _Tally(), time.perf_counter()
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
    def __init__(self, folder: Path, seed: str, clients: int, reference: Reference, tally: _Tally) -> None:
        self._server = Server(folder)
        self._rng = random.Random(seed)
        self._reference, self._tally = reference, tally
        self._worlds = [World(roi_id=f"roi-{number}") for number in range(clients)]
        self._pulse = Pulse()
        self._dying = threading.Event()
        self._orphans: set[str] = set()

    def run(self, kills: int, step: Callable[[], None]) -> None:
        with self._server:
            for number in range(kills + 1):
                restart_s = self._server.start()
                with self._tally.lock:
                    self._tally.restarts_s.append(restart_s)
                with closing(self._server.client()) as client:
                    for world in self._worlds:
                        self._check(world, client)
                self._complain("verify", problems_after_a_crash(self._server.models_dir))
                if number < kills:
                    self._work_and_kill(number)
                    step()
            self._complain("log", self._failures_in_the_log())

    def _work_and_kill(self, number: int) -> None:
        self._dying.clear()
        threads = [
            threading.Thread(target=self._work, args=(world, random.Random(self._rng.random())))
            for world in self._worlds
        ]
        for thread in threads:
            thread.start()
        wait_for(MOMENTS[number % len(MOMENTS)], self._rng, self._pulse, self._server.models_dir)
        self._dying.set()
        self._server.kill()
        for thread in threads:
            thread.join(_JOIN_S)
            if thread.is_alive():
                self._tally.findings.add("hang", "a client of a killed server still waits")
        orphans = {*temporary_files(self._server.models_dir)}
        age(orphans)
        with self._tally.lock:
            self._tally.kills += 1
            self._tally.kills_in_a_write += not orphans <= self._orphans
        self._orphans |= orphans

    def _work(self, world: World, rng: random.Random) -> None:
        with closing(self._server.client()) as client:
            while not self._dying.is_set():
                try:
                    call = world.draw(rng, client, copy_as=f"copy-{world.roi_id}-{rng.getrandbits(32):x}")
                    world.in_flight = call
                    self._pulse.begin(call.kind)
                    started_s = time.perf_counter()
                    answer = world.send(call, client)
                except CallCutOff as error:
                    if not self._dying.is_set():
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
                    self._tally.acknowledged[call.kind] += 1

    def _check(self, world: World, client: Client) -> None:
        """Compare a ROI with what its client was answered, and go on from what is there."""
        call, before = world.in_flight, world.state
        found = self._observed(world, client, {before.learned, *([call.after.learned] if call else [])})
        if found is None:
            world.in_flight = world.job_id = None
            return
        self._complain("lost", [f"{world.roi_id}: {text}" for text in contradictions(before, call, found)])
        if world.job_id is not None:
            state = client.get(f"/jobs/{world.job_id}").json["state"]
            if state not in ("done", "lost") or (state == "done" and call and found.learned != call.after.learned):
                self._tally.findings.add("job", f"a job of the killed process is {state}")
        if call is not None:
            with self._tally.lock:
                self._tally.cut_off[call.kind] += 1
                self._tally.happened[call.kind] += found == call.after
        self._inspect(world, found, client)
        self._check_copies(world, call.target if call else "", client)
        world.state, world.in_flight, world.job_id = found, None, None

    def _observed(self, world: World, client: Client, memories: set[frozenset[int]]) -> RoiState | None:
        manifest = client.get("/manifest", **world.roi)
        listed = client.get("/datasets/list", **world.roi)
        if manifest.status != 200 or listed.status != 200:
            self._tally.findings.add("unreadable", f"{world.roi_id}: {manifest}; {listed}")
            return None
        facts, classes = manifest.json, listed.json["classes"]
        learned: frozenset[int] | None = frozenset()
        if facts["memory"]:
            known = {self._reference.generation(memory).checksum: memory for memory in memories if memory}
            learned = known.get(facts["fit"]["checksum"])
        if learned is None:
            self._tally.findings.add("lost", f"{world.roi_id}: a memory of neither before nor after the call")
            return None
        return RoiState(
            learned=learned,
            mark=None if facts["calib"] is None else int(facts["calib"]["area_mm2_thr"]),
            ok=parts.numbers(classes["ok"]["files"], OK_POOL),
            ng=parts.numbers(classes["ng"]["files"], NG_POOL),
        )

    def _inspect(self, world: World, state: RoiState, client: Client) -> None:
        """Inspect a part and read a stored image: both must be what a single process gives for that generation."""
        answer = client.send(parts.infer(world.roi_id, parts.PROBE))
        with self._tally.lock:
            self._tally.inspections += 1
        if not state.learned:
            if answer.status != 400 or answer.json["code"] != "memory_not_found":
                self._tally.findings.add("inspection", f"{world.roi_id}, never fitted: {answer}")
        elif answer.status != 200:
            self._tally.findings.add("inspection", f"{world.roi_id}: {answer}")
        else:
            self._complain("inspection", differences(answer.json, state, self._reference))
        kept = [("ok", image) for image in sorted(state.ok)] + [("ng", image) for image in sorted(state.ng)]
        if kept:
            label, image = self._rng.choice(kept)
            files = client.get("/datasets/list", **world.roi).json["classes"][label]["files"]
            file_name = next(file for file in files if parts.digits(image) in file)
            stored = client.get("/datasets/file", **world.roi, label=label, filename=file_name)
            with self._tally.lock:
                self._tally.files_read += 1
            if stored.status != 200 or stored.body != parts.png(image):
                self._tally.findings.add("image", f"{world.roi_id}: {file_name} is not what was uploaded")

    def _check_copies(self, world: World, cut_off: str, client: Client) -> None:
        present = {recipe["recipe_id"] for recipe in client.get("/recipes").json["recipes"]}
        expected = dict(world.copies)
        if cut_off and cut_off in present:
            expected[cut_off] = world.state
        for target, state in expected.items():
            facts = client.get("/manifest", **world.roi, recipe_id=target).json if target in present else None
            if facts is None or facts["fit"]["checksum"] != self._reference.generation(state.learned).checksum:
                self._tally.findings.add("recipe", f"the copy {target} is gone, or not what was copied")
        world.copies = expected
        while len(world.copies) > _KEPT_COPIES:  # nobody else uses the folder while this client does not work
            target = next(iter(world.copies))
            del world.copies[target]
            shutil.rmtree(self._server.models_dir / "recipes" / target)

    def _failures_in_the_log(self) -> list[str]:
        log = self._server.log.read_text(encoding="utf-8", errors="replace")
        where = log.find("Traceback")
        return [] if where < 0 else [log[where : where + 1500]]

    def _complain(self, kind: str, sentences: Sequence[str]) -> None:
        for sentence in sentences:
            self._tally.findings.add(kind, sentence)


def age(paths: Iterable[str]) -> None:
    """Make temporary files and folders older than a sweep leaves alone, as if the restart came two days later."""
    then_s = time.time() - _AGED_S
    for path in paths:
        for entry in (Path(path), *Path(path).rglob("*")):
            os.utime(entry, (then_s, then_s))


def differences(answer: dict[str, object], state: RoiState, reference: Reference) -> list[str]:
    """Return how an inspection of the probe differs from what a single process gives."""
    generation = reference.generation(state.learned)
    params = answer["params"]
    assert isinstance(params, dict)
    expected = {
        "memory_checksum": (params["memory_checksum"], generation.checksum),
        "score": (answer["score"], reference.score(state.learned)),
        "threshold": (answer["threshold"], None if state.mark is None else generation.threshold),
        "area_mm2_thr": (params["area_mm2_thr"], float(state.mark) if state.mark is not None else 1.0),
    }
    return [f"{name} {found}, expected {wanted}" for name, (found, wanted) in expected.items() if found != wanted]


def _outcome(tally: _Tally, elapsed_s: float) -> Outcome:
    findings = tally.findings
    n_cut_off, n_happened = tally.cut_off.total(), tally.happened.total()
    n_lost = findings.count("lost", "unreadable", "recipe", "job", "image")
    return Outcome(
        name="kills",
        claims=(
            Claim(
                text="After every kill, what was acknowledged is there, and of a call that was cut off all or nothing",
                figure=f"{tally.kills} kills, {tally.kills_in_a_write} of them in the middle of a write; "
                f"{tally.acknowledged.total()} calls acknowledged, {n_cut_off} cut off, of which {n_happened} are "
                f"found done; {n_lost} contradictions",
                holds=n_lost == 0 and tally.kills > 0,
            ),
            Claim(
                text="After every restart inspections work, with the score and threshold of the generation they name",
                figure=f"{tally.inspections} inspections, {findings.count('inspection')} otherwise",
                holds=findings.count("inspection") == 0 and tally.inspections > 0,
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
            "acknowledged": dict(tally.acknowledged),
            "cut_off": dict(tally.cut_off),
            "cut_off_and_done": dict(tally.happened),
            "inspections": tally.inspections,
            "files_read": tally.files_read,
            "restart_median_s": statistics.median(tally.restarts_s),
            "restart_max_s": max(tally.restarts_s),
            "findings": dict(findings.counts),
            "elapsed_s": elapsed_s,
        },
        findings=findings.words,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 when every claim holds."""
    parser = argparse.ArgumentParser(prog="python -m reliability.kills", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=Plan.kills, help="in all arenas together (%(default)s)")
    parser.add_argument("--seed", type=int, default=Plan.seed, help="draws calls and moments (%(default)s)")
    parser.add_argument("--arenas", type=int, default=Plan.arenas, help="servers at a time (%(default)s)")
    add_output_options(parser)
    arguments = parser.parse_args(argv)
    plan = Plan(kills=arguments.kills, seed=arguments.seed, arenas=arguments.arenas)
    return proved([("kills", plan.kills, lambda folder, step: run(plan, folder, step=step))], arguments)


if __name__ == "__main__":
    sys.exit(main())
