"""A bad day in short: while clients inspect, everything that can go wrong around a service does, in random order.

    python -m reliability.hostile_day [--minutes 5] [--seed 0] [--only stop,lock] [--json day.json] [--update DOCUMENT]

Two processes share one models folder. Clients inspect known parts at four ROIs, one uploads, one replaces what a fifth
ROI has learned. Meanwhile, one after the other: a process is stopped and continued, another program holds a ROI's lock
while many write, the disk is full, the audit's file is moved, the models folder is gone, the descriptors are used up by
silent connections, bombs of pixels and endless uploads come, and the times of files are years off.

Every inspection is either the score, threshold and decision that the part had in the morning, or 503; ``/health`` says
within two seconds what is so (``reliability/health.py``). At last both processes are killed, and whatever was
acknowledged must be there: images, memories, decisions.
"""

from __future__ import annotations

import itertools
import random
import sqlite3
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from backend.demo.client import Answer, CallCutOff, CallFailed, Client
from benchmarks.vitals import vitals
from reliability import parts
from reliability.checks import leftovers, problems_after_a_crash
from reliability.command import run_command
from reliability.disturbances import DESCRIPTORS, DISTURBANCES, Scene
from reliability.health import TRUE_WITHIN_S, Answered, Disturbed, Said, lies, watch
from reliability.kills import age
from reliability.line_disk import LineDisk
from reliability.moments import temporary_files
from reliability.outcomes import Claim, Outcome, Tally
from reliability.reference import Reference
from reliability.servers import Server
from reliability.workers import at_work

ROIS = tuple(f"day-{number}" for number in range(4))
_CHANGING = "day-changing"
_SETTINGS = {"audit": True, "max_held_mpx": 120}  # so that a machine of much memory refuses as a line PC does
_LEARNED, _KNOWN, _POOL = range(8), range(3000, 3006), range(24)
_FIRST_UPLOAD = 10_000
_LONGEST_CALL_S, _RECOVERY_S, _CALM_S = 45.0, 30.0, 4.0
_SHORTEST_S, _LONGEST_S = 4.0, 8.0
_STARVED_S = 8.0
"""An inspection waits for no lock and no upload, only for large images that were there before it."""
_INSPECTION_PAUSE_S, _CHANGE_PAUSE_S = 0.05, 0.3
_WRONG = ("wrong", "dishonest")
_NO_ANSWER = ("cut off", "hang", "ended", "late")
_LOST = ("lost", "decision")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much; each field is an option of the command."""

    minutes: float = field(default=5.0, metadata={"help": "of disturbances"})
    seed: int = field(default=0, metadata={"help": "draws what happens when"})
    only: str = field(default="", metadata={"help": f"kinds, by commas, of {','.join(DISTURBANCES)}; all by default"})

    @property
    def seconds(self) -> float:
        """The same in seconds."""
        return 60 * self.minutes

    @property
    def kinds(self) -> Sequence[str]:
        """What happens."""
        return self.only.split(",") if self.only else [*DISTURBANCES]


@dataclass
class _Day(Tally):
    known: dict[tuple[str, int], tuple[object, ...]] = field(default_factory=dict)
    decisions: list[tuple[float, str]] = field(default_factory=list)
    uploaded: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    legal: list[frozenset[int]] = field(default_factory=lambda: [frozenset(_LEARNED)])
    answered: dict[str, list[Answered]] = field(default_factory=lambda: defaultdict(list))
    said: dict[str, list[Said]] = field(default_factory=lambda: defaultdict(list))
    disturbed: dict[str, list[Disturbed]] = field(default_factory=lambda: defaultdict(list))
    happened: Counter[str] = field(default_factory=Counter)
    now: str = ""
    most_mb: float = 0.0
    slowest_s: float = 0.0
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(_FIRST_UPLOAD))


def run(plan: Plan, folder: Path, *, step: Callable[[], None] = lambda: None, mounts: bool = True) -> Outcome:
    """Return what came of the day.

    Args:
        plan: How much.
        folder: For the models and logs.
        step: Called about once a second.
        mounts: False where nothing may be mounted though that were possible.

    Raises:
        ValueError: If the plan names a kind that there is not.
    """
    if unknown := {*plan.kinds} - {*DISTURBANCES}:
        raise ValueError(f"there is no {', '.join(sorted(unknown))}")
    day, started_s, servers = _Day(), time.perf_counter(), list[Server]()
    with ExitStack() as stack:
        disk = stack.enter_context(LineDisk(folder, lambda: [server.pid for server in servers], mounts=mounts))
        for name in ("one", "two"):
            server = Server(folder, name=name, settings=_SETTINGS, descriptors=DESCRIPTORS)
            servers.append(stack.enter_context(server))
            server.start()
        _morning(servers, day)
        scene = Scene(
            servers=servers, disk=disk, rois=ROIS, rng=random.Random(plan.seed), tally=day, upload=partial(_upload, day)
        )
        _pass_the_day(plan, scene, day, step)
        _evening(scene, day)
        with closing(Reference(folder / "reference")) as reference:
            _check_what_is_left(scene, day, reference)
        means = disk.means
    return _outcome(plan, day, means, time.perf_counter() - started_s)


def _morning(servers: Sequence[Server], day: _Day) -> None:
    with servers[0].client() as client:
        for roi_id in (*ROIS, _CHANGING):
            client.send(parts.fit(roi_id, _LEARNED)).ok()
            client.post("/calibrate_ng", {**parts.roi(roi_id), "mm_per_px": parts.MM_PER_PX}).ok()
        for roi_id, image in itertools.product(ROIS, _KNOWN):
            day.known[roi_id, image] = _found(client.send(parts.infer(roi_id, image)).ok())


def _pass_the_day(plan: Plan, scene: Scene, day: _Day, step: Callable[[], None]) -> None:
    inspectors = [
        partial(_inspect, day, server, roi_id, random.Random(f"{plan.seed}-{server.port}-{roi_id}"))
        for server in scene.servers
        for roi_id in ROIS
    ]
    watchers = [
        partial(watch, lambda timeout_s, server=server: server.client(timeout_s=timeout_s), day.said[server.log.stem])
        for server in scene.servers
    ]
    changers = [partial(change, day, scene.servers, random.Random(plan.seed)) for change in (_keep_uploading, _replace)]
    ends_s, stepped_s = time.monotonic() + plan.seconds, time.monotonic()
    with at_work([*inspectors, *watchers, *changers], day.findings):
        while time.monotonic() < ends_s:
            for kind in scene.rng.sample(plan.kinds, len(plan.kinds)):
                _disturb(kind, scene, day)
                time.sleep(_CALM_S)
                for _ in range(int(time.monotonic() - stepped_s)):
                    step()
                    stepped_s += 1
                if time.monotonic() > ends_s and {*day.happened} == {*plan.kinds}:
                    break


def _disturb(kind: str, scene: Scene, day: _Day) -> None:
    begin_s, day.now = time.monotonic(), kind
    which = DISTURBANCES[kind](scene, scene.rng.uniform(_SHORTEST_S, _LONGEST_S))
    done = Disturbed(kind=kind, begin_s=begin_s, end_s=time.monotonic())
    day.happened[kind] += 1
    for server in scene.servers:
        if which in (None, server):
            day.disturbed[server.log.stem].append(done)
        held = vitals(server.pid)
        day.most_mb = max(day.most_mb, held.resident_mb if held is not None else 0.0)
        if not server.is_running:
            day.findings.add("ended", f"{server.log.stem} ended during {kind}: {server.log_tail()[-600:]}")
    day.now = ""


def _found(answer: dict[str, object]) -> tuple[object, ...]:
    return answer["score"], answer["threshold"], answer["decision"]


def _inspect(day: _Day, server: Server, roi_id: str, rng: random.Random, stop: threading.Event) -> None:
    with server.client(timeout_s=_LONGEST_CALL_S) as client:
        while not stop.wait(_INSPECTION_PAUSE_S):
            image, request_id, at_s, during = rng.choice(_KNOWN), uuid.uuid4().hex, time.monotonic(), day.now
            try:
                answer = client.send(parts.infer(roi_id, image), **{"X-Request-Id": request_id})
            except CallCutOff as error:
                _note_cut_off(day, during, error)
                continue
            with day.lock:
                day.calls["infer"] += 1
                day.busy += answer.status == 503
                took_s = time.monotonic() - at_s
                if "stop" not in (during, day.now):
                    day.slowest_s = max(day.slowest_s, took_s)
            if took_s > _STARVED_S and not {"stop", "bombs"} & {during, day.now}:
                day.findings.add(
                    "late", f"{roi_id}: an inspection took {took_s:.1f} s ({during or 'while nothing is wrong'})"
                )
            if answer.status == 200:
                day.answered[server.log.stem].append(Answered(at_s=at_s))
                day.decisions.append((at_s, request_id))
                if _found(answer.json) != day.known[roi_id, image]:
                    expected = day.known[roi_id, image]
                    day.findings.add("wrong", f"{roi_id} part {image} {_found(answer.json)}, not {expected} ({during})")
            elif _is_honest(day, answer, during):
                day.answered[server.log.stem].append(Answered(at_s=at_s, code=answer.json["code"]))


def _note_cut_off(day: _Day, during: str, error: CallCutOff) -> None:
    # Where the descriptors are used up, connections that rest are closed, and a call may meet that moment.
    if "descriptors" not in (during, day.now):
        day.findings.add("cut off", f"{error} ({during or 'while nothing is wrong'})")


def _is_honest(day: _Day, answer: Answer, during: str) -> bool:
    """Return whether a good call was refused as the fault of the machine, and in time."""
    if answer.status == 503:
        return True
    day.findings.add("dishonest", f"{answer} ({during or 'while nothing is wrong'})")
    return False


def _upload(day: _Day, client: Client, roi_id: str) -> None:
    with day.lock:
        image = next(day.numbers)
    during = day.now
    try:
        answer = client.send(parts.upload(roi_id, "ng", [image]))
    except CallCutOff as error:
        _note_cut_off(day, during, error)
        return
    with day.lock:
        day.calls["upload"] += 1
        if answer.status == 200:
            day.uploaded[roi_id].add(image)
    if answer.status != 200:
        _is_honest(day, answer, during)


def _keep_uploading(day: _Day, servers: Sequence[Server], rng: random.Random, stop: threading.Event) -> None:
    while not stop.wait(_CHANGE_PAUSE_S):
        with rng.choice(servers).client(timeout_s=_LONGEST_CALL_S) as client:
            _upload(day, client, rng.choice(ROIS))


def _replace(day: _Day, servers: Sequence[Server], rng: random.Random, stop: threading.Event) -> None:
    """Replace a memory over and over; one whose call was not acknowledged may be there or not."""
    while not stop.wait(_CHANGE_PAUSE_S):
        learned, during = frozenset(rng.sample(_POOL, rng.randint(2, 4))), day.now
        day.legal.append(learned)
        with rng.choice(servers).client(timeout_s=_LONGEST_CALL_S) as client:
            try:
                answer = client.send(parts.fit(_CHANGING, sorted(learned), mode="replace"))
            except CallCutOff as error:
                _note_cut_off(day, during, error)
                continue
        if answer.status == 200:
            day.legal = [learned]
            with day.lock:
                day.calls["fit"] += 1
        else:
            _is_honest(day, answer, during)


def _evening(scene: Scene, day: _Day) -> None:
    """Wait until all is well again, kill both processes, and start one."""
    for server in scene.servers:
        deadline = time.monotonic() + _RECOVERY_S
        while time.monotonic() < deadline:
            with suppress(CallCutOff, CallFailed, ValueError), server.client(timeout_s=5.0) as client:
                if client.get("/health").status == 200 and client.send(parts.infer(ROIS[0], _KNOWN[0])).status == 200:
                    break
            time.sleep(0.2)
        else:
            day.findings.add("lost", f"{server.log.stem} does not inspect {_RECOVERY_S:g} s after the day")
    for server in scene.servers:
        if server.is_running:
            server.kill()
    age({*temporary_files(scene.disk.models_dir)})
    scene.servers[0].start()


def _check_what_is_left(scene: Scene, day: _Day, reference: Reference) -> None:
    models_dir = scene.disk.models_dir
    with scene.servers[0].client() as client:
        for (roi_id, image), expected in day.known.items():
            answer = client.send(parts.infer(roi_id, image))
            if answer.status != 200 or _found(answer.json) != expected:
                day.findings.add("wrong", f"{roi_id} part {image} afterwards: {answer}, not {expected}")
        for roi_id, images in day.uploaded.items():
            listed = client.get("/datasets/list", **parts.roi(roi_id))
            files = listed.json["classes"]["ng"]["files"] if listed.status == 200 else []
            ends = {name.rpartition("-")[2].partition(".")[0]: name for name in files}
            for image in images:
                name = ends.get(parts.digits(image), "")
                stored = client.get("/datasets/file", **parts.roi(roi_id), label="ng", filename=name or "none.png")
                if stored.status != 200 or stored.body != parts.png(image):
                    day.findings.add("lost", f"{roi_id}: uploaded part {image}: {stored.status}")
        facts = client.get("/manifest", **parts.roi(_CHANGING))
        checksums = {reference.generation(learned).checksum for learned in day.legal}
        if facts.status != 200 or not facts.json["memory"] or facts.json["fit"]["checksum"] not in checksums:
            day.findings.add("lost", f"{_CHANGING}: not the memory that was acknowledged last: {facts}")
    day.findings.extend("verify", problems_after_a_crash(models_dir))
    scene.servers[0].stop()
    day.findings.extend("verify", leftovers(models_dir))
    day.findings.extend("decision", missing_decisions(day.decisions, scene.moved, models_dir / "audit.sqlite3"))


def missing_decisions(
    decisions: Sequence[tuple[float, str]], moved: Sequence[tuple[float, Path]], path: Path
) -> list[str]:
    """Return which acknowledged decisions are in no file of the audit, or not in the one at its path.

    Args:
        decisions: When each was asked for, monotonic s, and its request id.
        moved: When the file was moved, and where to.
        path: The audit's.
    """
    kept = {file: _request_ids(file) for _, file in moved} | {path: _request_ids(path)}
    anywhere, moved_s = set().union(*kept.values()), max((at_s for at_s, _ in moved), default=0.0)
    found = [f"{request_id} is in no file of the audit" for _, request_id in decisions if request_id not in anywhere]
    late = [each for at_s, each in decisions if at_s > moved_s + TRUE_WITHIN_S and each in anywhere - kept[path]]
    return found + [f"{request_id} was written to a file that had been moved before" for request_id in late]


def _request_ids(path: Path) -> set[str]:
    # A file that was moved has left its log behind: nothing may be read from what lies beside it.
    mode = "ro" if path.name == "audit.sqlite3" else "ro&immutable=1"
    try:
        with closing(sqlite3.connect(f"file:{path}?mode={mode}", uri=True)) as connection:
            return {row[0] for row in connection.execute("SELECT request_id FROM decisions")}
    except sqlite3.Error:
        return set()


def _outcome(plan: Plan, day: _Day, means: str, elapsed_s: float) -> Outcome:
    findings = day.findings
    for name, said in day.said.items():
        said_wrong = lies(said, day.answered[name], day.disturbed[name])
        findings.extend("health", [f"{name} said: {text}" for text in said_wrong])
    shown = ", ".join(f"{number} {kind}" for kind, number in sorted(day.happened.items()))
    n_said, n_uploaded = sum(map(len, day.said.values())), sum(map(len, day.uploaded.values()))
    return Outcome(
        name="hostile_day",
        claims=[
            Claim(
                text="Every inspection is the score, threshold and decision of before, or an honest 503",
                figure=f"{plan.minutes:g} min: {shown} ({means}); {day.calls['infer']} inspections, {day.busy} of them "
                f"503; {findings.count(*_WRONG)} otherwise",
                holds=findings.count(*_WRONG) == 0
                and day.calls["infer"] > day.busy
                and {*day.happened} == {*plan.kinds},
            ),
            Claim(
                text=f"Every call is answered, inspections within {_STARVED_S:g} s, and no process ends",
                figure=f"slowest inspection {day.slowest_s:.1f} s, most memory after a disturbance {day.most_mb:.0f} "
                f"MB; {findings.count(*_NO_ANSWER)} otherwise",
                holds=findings.count(*_NO_ANSWER) == 0,
            ),
            Claim(
                text=f"`/health` says within {TRUE_WITHIN_S:g} s what is so",
                figure=f"asked {n_said} times, {findings.count('health')} otherwise",
                holds=findings.count("health") == 0 and n_said > 0,
            ),
            Claim(
                text="After a kill -9 at the end, everything that was acknowledged is there",
                figure=f"{n_uploaded} images, {day.calls['fit']} fits, {len(day.decisions)} decisions; "
                f"{findings.count(*_LOST)} lost",
                holds=findings.count(*_LOST) == 0 and n_uploaded > 0 and day.calls["fit"] > 0,
            ),
            Claim(
                text="Nothing is written where the models folder was not, and `roi-inspector verify` finds nothing",
                figure=f"{findings.count('folder')} written, {findings.count('verify')} problems",
                holds=findings.count("folder", "verify") == 0,
            ),
        ],
        figures={
            "disturbances": dict(day.happened),
            "means": means,
            "calls": dict(day.calls),
            "busy": day.busy,
            "asked_for_health": n_said,
            "slowest_s": day.slowest_s,
            "most_mb": day.most_mb,
            "findings": dict(findings.counts),
            "elapsed_s": elapsed_s,
        },
        findings=findings.words,
    )


if __name__ == "__main__":
    run_command("hostile_day", __doc__, Plan, run, lambda plan: int(plan.seconds))
