"""What the rows of a benchmark share: sizes, images, embeddings, servers, and contenders that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.demo.client import Client
from backend.demo.samples import render_defective, render_good
from backend.extractors.dinov2 import DinoV2Features
from backend.imaging.image_codec import encode_png
from benchmarks.servers import MM_PER_PX, REFERENCE, SERVICE, Running, learn, roi, serving

FITTED = "fitted"
"""The ROI that is inspected."""

LOCAL = "aligned"
"""The ROI of the same images that is scored by place."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes and numbers of rounds.

    Attributes:
        size_px: Edge of the images and of the network input, px.
        n_images: Good images of a fit.
        coreset_rate: Of a fit.
        usual_memory_sizes: Vectors to search, beside plain numpy.
        memory_size: Vectors to search, beside FAISS.
        rounds: Rounds of what takes milliseconds.
        calls: Calls of a contender in a row, of which the median counts.
        long_rounds: Rounds of what takes seconds.
        fit_rounds: Rounds of fits.
        starts: Starts with a warm engine cache.
        n_rois: ROIs in the cache for the row about memory.
    """

    size_px: int = 384
    n_images: int = 30
    coreset_rate: float = 0.02
    usual_memory_sizes: tuple[int, ...] = (438, 2_000)
    memory_size: int = 10_000
    rounds: int = 7
    calls: int = 5
    long_rounds: int = 3
    fit_rounds: int = 2
    starts: int = 3
    n_rois: int = 50


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        work: What was done.
        service: The service's figure, in ``unit``; None when it was not measured.
        reference: The reference's.
        unit: ``ms``, ``s`` or ``MB``.
        ratio: Median over the rounds of service ÷ reference.
        spread: The smallest and the largest ratio of a round.
        n_rounds: Rounds.
        limit: What the ratio, or where there is no reference the figure, must not exceed.
        same_result: False when the contenders came to different results: then the limit is missed.
        remark: What a reader should know.
    """

    work: str
    service: float | None = None
    reference: float | None = None
    unit: str = "ms"
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    n_rounds: int = 0
    limit: float | None = None
    same_result: bool = True
    remark: str = ""

    @property
    def is_met(self) -> bool:
        """True when the figure keeps the limit and the result is the reference's."""
        figure = self.service if self.ratio is None else self.ratio
        return self.limit is not None and figure is not None and figure <= self.limit and self.same_result

    @property
    def limit_text(self) -> str:
        """Return the limit with its unit."""
        return f"≤ {self.limit:g}" if self.ratio is not None else f"≤ {self.limit:g} {self.unit}"


class Workbench:
    """What the rows share: images, the embeddings of the real extractor, and servers that stay up until the end."""

    def __init__(self, plan: Plan, folder: Path, weights: Path) -> None:
        """Use a folder for artefacts, logs and caches."""
        self.plan, self.folder, self.weights = plan, folder, weights
        self._stack = ExitStack()
        self._contenders: dict[str, tuple[Running, Running]] = {}
        self._fitted: dict[str, tuple[Client, Client]] = {}

    def __enter__(self) -> Workbench:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def image(self, seed: int) -> NDArray[np.uint8]:
        """Return a good part, [H, W, 3] uint8."""
        return render_good(seed, size_px=self.plan.size_px, mm_per_px=MM_PER_PX).image_bgr

    @cached_property
    def good(self) -> list[NDArray[np.uint8]]:
        """The good parts of a fit."""
        return [self.image(seed) for seed in range(self.plan.n_images)]

    @cached_property
    def defective(self) -> NDArray[np.uint8]:
        """A part that no memory has seen, and that lacks a bolt hole."""
        return render_defective(1000, "missing_hole", size_px=self.plan.size_px, mm_per_px=MM_PER_PX).image_bgr

    def pngs(self) -> list[bytes]:
        """Return the good parts as files."""
        return [encode_png(image) for image in self.good]

    @cached_property
    def features(self) -> DinoV2Features:
        """The service's extractor on the CPU, with the engine that it chooses there."""
        return self.features_on("cpu")

    def features_on(self, device: str) -> DinoV2Features:
        """Return the service's extractor on a device."""
        return DinoV2Features(
            device=device, weights=self.weights, input_size=self.plan.size_px, cache_dir=self.folder / "engines"
        )

    @cached_property
    def embeddings(self) -> NDArray[np.float32]:
        """[N, D], all rows of the good parts."""
        return np.concatenate(self.features.extract_batch(self.good))

    @cached_property
    def query(self) -> NDArray[np.float32]:
        """[Ht*Wt, D], the rows of the defective part."""
        return self.features.extract(self.defective)[0]

    def settings(self, models_dir: Path, device: str = "cpu") -> dict[str, object]:
        """Return the settings of a server."""
        return {
            "models_dir": models_dir,
            "extractor": "dinov2",
            "weights": self.weights,
            "device": device,
            "input_size": self.plan.size_px,
            "coreset_rate": self.plan.coreset_rate,
            "score_mode": "percentile",
            "aligned": "no",  # what the references do; rows on aligned ROIs ask for it
            "cache_max_entries": max(50, self.plan.n_rois),
        }

    def models_dir(self, device: str = "cpu") -> Path:
        """Return the folder of the service that runs for ``contenders``."""
        return self.folder / f"models-{device.partition(':')[0]}"

    def contenders(self, device: str = "cpu") -> tuple[Running, Running]:
        """Return the service and the reference service on a device, ready."""
        if device not in self._contenders:
            settings = self.settings(self.models_dir(device), device)
            running = [
                self._stack.enter_context(serving(app, self.folder, settings=settings)) for app in (SERVICE, REFERENCE)
            ]
            for one in running:
                one.seconds_until_ready()
            self._contenders[device] = (running[0], running[1])
        return self._contenders[device]

    def callers(self, device: str = "cpu") -> tuple[Client, Client]:
        """Return a client of each of the contenders."""
        service, reference = (self._stack.enter_context(running.caller()) for running in self.contenders(device))
        return service, reference

    def fitted(self, device: str = "cpu") -> tuple[Client, Client]:
        """Return clients of both, each of which has learned the ROI ``FITTED`` and has a threshold for it."""
        if device not in self._fitted:
            service, reference = self.callers(device)
            learned = learn(FITTED, self.pngs())
            for caller in (service, reference):
                caller.send(learned).ok()
            service.post("/calibrate_ng", roi(FITTED)).ok()
            self._fitted[device] = (service, reference)
        return self._fitted[device]

    def fitted_locally(self) -> Client:
        """Return a client of the service, which has learned ``FITTED`` and the same images as ``LOCAL``."""
        service, _ = self.fitted()
        service.send(learn(LOCAL, self.pngs(), aligned="yes")).ok()
        return service


def duel(
    service: Callable[[], object], reference: Callable[[], object], *, rounds: int, calls: int = 1, warm: bool = True
) -> dict[str, Any]:
    """Return a row's figures: contenders in turn, the one that begins changing from round to round.

    Args:
        service: One call of the service's work.
        reference: One call of the reference's.
        rounds: Rounds.
        calls: Calls in a row, of which the median counts.
        warm: Call both once before the clock starts.
    """
    contenders = (service, reference)
    if warm:
        for call in contenders:
            call()
    times_ms: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            times_ms[which].append(statistics.median(timed_ms(contenders[which]) for _ in range(calls)))
    ratios = [ours / theirs for ours, theirs in zip(*times_ms, strict=True)]
    return {
        "service": statistics.median(times_ms[0]),
        "reference": statistics.median(times_ms[1]),
        "ratio": statistics.median(ratios),
        "spread": (min(ratios), max(ratios)),
        "n_rounds": rounds,
    }


def timed_ms(call: Callable[[], object]) -> float:
    """Return how long a call took, ms."""
    started_s = time.perf_counter()
    call()
    return (time.perf_counter() - started_s) * 1e3
