"""What a server that was killed and started again must hold: all that its clients were answered for, and whole."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from backend.artifacts.versioned_files import DEFAULT_KEPT
from backend.demo.client import Client
from reliability import parts
from reliability.outcomes import Tally
from reliability.reference import Reference
from reliability.worlds import NG_POOL, OK_POOL, RoiState, World, contradictions

_KEPT_COPIES = 2


@dataclass
class KillTally(Tally):
    """What all arenas have seen; ``calls`` are the acknowledged ones."""

    cut_off: Counter[str] = field(default_factory=Counter)
    happened: Counter[str] = field(default_factory=Counter)
    restarts_s: list[float] = field(default_factory=list)
    kills: int = 0
    kills_in_a_write: int = 0
    inspections: int = 0
    files_read: int = 0
    versions: int = 0


class RecoveryCheck:
    """Compares what one server holds with what its clients know.

    Args:
        models_dir: The server's.
        rng: Draws the stored images that are read.
        reference: What a single process gives.
        tally: Gets what is wrong.
    """

    def __init__(self, models_dir: Path, rng: random.Random, reference: Reference, tally: KillTally) -> None:
        self._models_dir, self._rng, self._reference, self._tally = models_dir, rng, reference, tally

    def world(self, world: World, client: Client) -> None:
        """Compare a ROI with what its client was answered, and go on from what is there."""
        call, before = world.in_flight, world.state
        found = self._observed(world, client, {before.learned, *([call.after.learned] if call else [])})
        if found is None:
            world.in_flight = world.job_id = None
            return
        self._tally.findings.extend("lost", [f"{world.roi_id}: {text}" for text in contradictions(before, call, found)])
        if world.job_id is not None:
            state = client.get(f"/jobs/{world.job_id}").json["state"]
            if state not in ("done", "lost") or (state == "done" and call and found.learned != call.after.learned):
                self._tally.findings.add("job", f"a job of the killed process is {state}")
        if call is not None:
            with self._tally.lock:
                self._tally.cut_off[call.kind] += 1
                self._tally.happened[call.kind] += found == call.after
        self._inspect(world, found, client)
        self._check_versions(world, found, client)
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
            threshold=None if facts["calib"] is None else facts["calib"]["threshold"],
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
            self._tally.findings.extend("inspection", differences(answer.json, state, self._reference))
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

    def _check_versions(self, world: World, state: RoiState, client: Client) -> None:
        """The versions are those of the last switches, without a gap, and each holds what it says."""
        listed = client.get("/versions", **world.roi).json["versions"]
        numbers = [version["version"] for version in listed]
        newest = max(numbers, default=0)
        wrong = []
        if numbers != [*range(newest, max(0, newest - 1 - DEFAULT_KEPT), -1)]:
            wrong.append(f"the versions are {numbers}")
        in_force = [version["reason"] for version in listed if version["in_force"]]
        if in_force != ([state.reason] if state.learned else []):
            wrong.append(f"in force is the version of {in_force}, and the ROI holds {state.reason}")
        for version in listed:
            said = RoiState().with_version(version["reason"])
            generation = self._reference.generation(said.learned)
            expected = (generation.checksum, said.threshold, None)
            if (version["memory_checksum"], version["threshold"], version["note"]) != expected:
                wrong.append(f"version {version} does not hold what it says")
        with self._tally.lock:
            self._tally.versions += len(listed)
        self._tally.findings.extend("version", [f"{world.roi_id}: {text}" for text in wrong])

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
            shutil.rmtree(self._models_dir / "recipes" / target)


def differences(answer: dict[str, object], state: RoiState, reference: Reference) -> list[str]:
    """Return how an inspection of the probe differs from what a single process gives."""
    generation = reference.generation(state.learned)
    params = answer["params"]
    assert isinstance(params, dict)
    expected = {
        "memory_checksum": (params["memory_checksum"], generation.checksum),
        "score": (answer["score"], reference.score(state.learned)),
        "threshold": (answer["threshold"], None if state.mark is None else state.threshold or generation.threshold),
        "area_mm2_thr": (params["area_mm2_thr"], float(state.mark) if state.mark is not None else 1.0),
    }
    return [f"{name} {found}, expected {wanted}" for name, (found, wanted) in expected.items() if found != wanted]
