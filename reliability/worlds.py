"""What a client knows that a ROI must hold: its state, how each call changes it, and what a killed call may leave.

A call that was answered counts whole. A call that a kill cut off may have happened or not, and of this the memory and
its calibration are one thing: both are from before, or both from after. The images of a data set count one by one: of
an upload or a clearing of several that was cut off, any may be there, each one whole.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from backend.demo.client import Answer, Client
from reliability import parts

OK_POOL = range(24)
NG_POOL = range(1000, 1010)
_FITTED, _UPLOADED = OK_POOL[:16], OK_POOL[16:]
"""Apart: a fit that replaces the memory keeps what was uploaded to the data set, and deletes what only fits brought."""
_MAX_LEARNED = 8
_FINAL_STATES = {"done", "failed", "cancelled", "lost"}


@dataclass(frozen=True, kw_only=True)
class RoiState:
    """What a ROI holds.

    Attributes:
        learned: The parts in its memory; none when it was never fitted.
        mark: What its calibration is recognised by: the ``area_mm2_thr`` that it was given; None when never calibrated.
        ok: The parts of its data set.
        ng: The bad ones.
        threshold: Set by hand, so that no bad image that comes or goes moves it; None for that of the memory's scores.
    """

    learned: frozenset[int] = frozenset()
    mark: int | None = None
    ok: frozenset[int] = frozenset()
    ng: frozenset[int] = frozenset()
    threshold: float | None = None

    @property
    def reason(self) -> str:
        """What the call that makes it the ROI's writes as its reason, so that each version says what it must hold."""
        return json.dumps({"learned": sorted(self.learned), "mark": self.mark, "threshold": self.threshold})

    def with_version(self, reason: str) -> RoiState:
        """Return the state once a version with this reason is in force; images are no part of versions."""
        said = json.loads(reason)
        return replace(self, learned=frozenset(said["learned"]), mark=said["mark"], threshold=said["threshold"])


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call, what it leaves when it is answered, and what it makes beside.

    Attributes:
        kind: For the counts.
        after: The ROI's state once it is answered.
        images: What it sends.
        file_name: What it deletes.
        label: The class that it is about.
        as_job: Whether it is sent with ``Prefer: respond-async``.
        target: The recipe that it makes.
        version: The version that it brings back.
    """

    kind: str
    after: RoiState
    images: tuple[int, ...] = ()
    file_name: str = ""
    label: str = "ok"
    as_job: bool = False
    target: str = ""
    version: int = 0


@dataclass
class World:
    """One ROI and the client that alone changes it.

    Attributes:
        roi_id: The ROI.
        state: What it must hold.
        in_flight: The call whose answer is awaited.
        job_id: The job that this call was answered with.
        copies: Recipes that this client made, and what the ROI held then.
    """

    roi_id: str
    state: RoiState = field(default_factory=RoiState)
    in_flight: Call | None = None
    job_id: str | None = None
    copies: dict[str, RoiState] = field(default_factory=dict)
    _marks: int = 0

    def draw(self, rng: random.Random, client: Client, *, copy_as: str) -> Call:
        """Return the next call: one that the service must answer with success, in any state of the ROI."""
        state, kinds = self.state, ["fit"] * 4 + ["replace", "upload", "upload"]
        if state.learned:
            kinds += ["calibrate"] * 4 + ["activate"] * 3 + ["copy"] * bool(rng.random() < 0.2)
        labels = [label for label, images in (("ok", state.ok), ("ng", state.ng)) if images]
        if labels:
            kinds += ["delete"] * 2 + ["clear"] * bool(rng.random() < 0.5)
        kind = rng.choice(kinds)
        if kind == "fit" and len(state.learned & state.ok) >= _MAX_LEARNED:
            kind = "replace"  # so that a fit stays as short as it is
        if kind in ("fit", "replace"):
            images = tuple(rng.sample(_FITTED, rng.randint(2, 4)))
            return Call(kind=kind, images=images, after=_fitted(state, kind, images), as_job=rng.random() < 0.15)
        if kind == "upload":
            label = rng.choice(["ok", "ng"])
            images = tuple(rng.sample(_UPLOADED if label == "ok" else NG_POOL, rng.randint(1, 3)))
            return Call(kind=kind, images=images, label=label, after=_with(state, label, _of(state, label) | {*images}))
        if kind == "calibrate":
            self._marks += 1
            return Call(kind=kind, after=replace(state, mark=self._marks, threshold=0.1 + self._marks / 1e4))
        if kind == "activate":
            versions = client.get("/versions", **self.roi).json["versions"]
            version = rng.choice(versions)
            return Call(kind=kind, version=version["version"], after=state.with_version(version["reason"]))
        if kind == "copy":
            return Call(kind=kind, target=copy_as, after=state)
        label = rng.choice(labels)
        if kind == "clear":
            return Call(kind=kind, label=label, after=_with(state, label, frozenset()))
        file_name = rng.choice(client.get("/datasets/list", **self.roi).json["classes"][label]["files"])
        (image,) = parts.numbers([file_name], [*OK_POOL, *NG_POOL])
        return Call(kind=kind, label=label, file_name=file_name, after=_with(state, label, _of(state, label) - {image}))

    def send(self, call: Call, client: Client) -> Answer:
        """Send a call and return its answer; of a job, that of its end.

        Raises:
            CallCutOff: If none came.
        """
        if call.kind in ("fit", "replace"):
            mode = "add" if call.kind == "fit" else "replace"
            form = parts.fit(self.roi_id, call.images, mode=mode, reason=call.after.reason)
            return self._as_job(client, client.send(form, Prefer="respond-async")) if call.as_job else client.send(form)
        if call.kind == "upload":
            return client.send(parts.upload(self.roi_id, call.label, call.images))
        if call.kind == "calibrate":
            body = {**self.roi, "mm_per_px": parts.MM_PER_PX, "area_mm2_thr": float(call.after.mark or 0)}
            by_hand = {"threshold": call.after.threshold, "reason": call.after.reason}
            return client.post("/calibrate_ng", body | by_hand)
        if call.kind == "activate":
            return client.post("/versions/activate", {**self.roi, "version": call.version, "reason": call.after.reason})
        if call.kind == "copy":
            return client.post("/recipes/copy", {"source": "default", "target": call.target})
        if call.kind == "clear":
            return client.delete("/datasets/clear", **self.roi, label=call.label)
        return client.delete("/datasets/file", **self.roi, label=call.label, filename=call.file_name)

    def acknowledge(self) -> None:
        """The call in flight was answered: what it changed must be there from now on."""
        if self.in_flight is not None:
            self.state = self.in_flight.after
            if self.in_flight.target:
                self.copies[self.in_flight.target] = self.state
            self.in_flight, self.job_id = None, None

    @property
    def roi(self) -> Mapping[str, str]:
        """The fields that name the ROI."""
        return parts.roi(self.roi_id)

    def _as_job(self, client: Client, answer: Answer) -> Answer:
        if answer.status != 202:
            return answer
        self.job_id = answer.json["job_id"]
        while True:
            answer = client.get(f"/jobs/{self.job_id}")
            if answer.status != 200 or answer.json["state"] in _FINAL_STATES:
                return answer


def contradictions(before: RoiState, call: Call | None, found: RoiState) -> list[str]:
    """Return how what was found after a restart contradicts what was acknowledged before the kill.

    Args:
        before: What the last answer left.
        call: The call that was cut off; None when there was none.
        found: What is there.
    """
    after = before if call is None else call.after
    wrong = []
    models = {(each.learned, each.mark, each.threshold) for each in (before, after)}
    if (found.learned, found.mark, found.threshold) not in models:
        wrong.append(f"memory and calibration are {_model(found)}; legal: {_model(before)} or {_model(after)}")
    for label in ("ok", "ng"):
        old, new, there = _of(before, label), _of(after, label), _of(found, label)
        if not (old & new) <= there <= (old | new):
            wrong.append(f"{label} images are {sorted(there)}; before {sorted(old)}, after {sorted(new)}")
    if found.learned != before.learned and not after.ok <= found.ok:
        wrong.append(f"the memory was switched before its images were stored: {sorted(after.ok - found.ok)} missing")
    if found.learned != after.learned and not before.ok - after.ok <= found.ok and call and call.kind == "replace":
        wrong.append("images of the old memory were deleted before the switch")
    return wrong


def _fitted(state: RoiState, kind: str, images: tuple[int, ...]) -> RoiState:
    """An addition learns what it brings and what was learned and is still kept; a replacement drops the old ones."""
    if kind == "fit":
        learned = (state.learned & state.ok) | {*images}
        return replace(state, learned=learned, ok=state.ok | {*images})
    return replace(state, learned=frozenset(images), ok=(state.ok - (state.learned - {*images})) | {*images})


def _of(state: RoiState, label: str) -> frozenset[int]:
    return state.ok if label == "ok" else state.ng


def _with(state: RoiState, label: str, images: frozenset[int]) -> RoiState:
    return replace(state, ok=images) if label == "ok" else replace(state, ng=images)


def _model(state: RoiState) -> str:
    return f"parts {sorted(state.learned)} with calibration {state.mark} at {state.threshold}"
