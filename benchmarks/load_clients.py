"""Clients that inspect, ask for /health and fit at the same time, and what they saw."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np

from backend.demo.client import CallCutOff, CallFailed, Client, Form
from backend.demo.samples import render_good
from backend.imaging.image_codec import encode_png
from benchmarks.servers import MM_PER_PX, Running, inspect, learn

FITS = ("none", "extracting", "picking")
HEALTH_MS = 50.0
"""What the p99 of /health must not exceed while a crowd inspects and a fit runs."""

LOAD_ROI, REFIT_ROI = "load", "load-refit"
"""Both are fitted before anything is measured."""

_NEW_ROI = "load-new"
_CROWD = 16
_HEALTH_PAUSE_S = 0.02
_REFUSED_PAUSE_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes and durations.

    Attributes:
        size_px: Edge of the images, px.
        n_images: Good images of a fit.
        seconds: How long each combination is measured.
        clients: Numbers of clients.
        fits: What else goes on.
        extractor: ``dinov2`` or ``filter-bank``.
    """

    size_px: int = 384
    n_images: int = 30
    seconds: float = 8.0
    clients: Sequence[int] = (1, 4, 16)
    fits: Sequence[str] = FITS
    extractor: str = "dinov2"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one combination came to.

    Attributes:
        device: ``CPU`` or ``CUDA``.
        clients: Clients in closed loops.
        fit: ``none``, ``extracting`` or ``picking``.
        images_per_s: Inspections answered per second.
        latency_ms: p50, p95 and p99 of the inspections.
        n_inspections: How many that rests on.
        health_p99_ms: p99 of ``GET /health``.
        n_fits: Fits that ended in the time.
        n_refused: Inspections answered 503.
    """

    device: str
    clients: int
    fit: str
    images_per_s: float
    latency_ms: tuple[float, float, float]
    n_inspections: int
    health_p99_ms: float
    n_fits: int
    n_refused: int

    @property
    def has_limit(self) -> bool:
        """True for a crowd of clients beside a fit: there /health has a limit."""
        return self.clients >= _CROWD and self.fit != "none"

    @property
    def is_met(self) -> bool:
        """True when /health keeps the limit."""
        return self.health_p99_ms <= HEALTH_MS


@dataclass
class _Tally:
    """What the threads of one combination have seen; a list's append needs no lock."""

    stop: threading.Event = field(default_factory=threading.Event)
    inspections_ms: list[float] = field(default_factory=list)
    health_ms: list[float] = field(default_factory=list)
    fits: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    broken: list[BaseException] = field(default_factory=list)


_Loop = Callable[[Client, _Tally], None]


def measure(running: Running, plan: Plan, device: str, clients: int, fit: str, pngs: Sequence[bytes]) -> Measured:
    """Return what one combination comes to; the ROI has been fitted.

    Args:
        running: The server.
        plan: Sizes and durations.
        device: What the table calls the device.
        clients: Number of clients.
        fit: What else goes on.
        pngs: Good images that the memory has learned; the clients send others.
    """
    tally = _Tally()
    loops: list[_Loop] = [partial(_inspect, _request(plan.size_px, number)) for number in range(clients)]
    loops.append(_ask_health)
    if fit != "none":
        loops.append(partial(_fit, fit, pngs))
    threads = [threading.Thread(target=_guarded, args=(loop, running, tally), daemon=True) for loop in loops]
    started_s = time.perf_counter()
    for thread in threads:
        thread.start()
    tally.stop.wait(plan.seconds)
    while not (tally.stop.is_set() or (tally.inspections_ms and tally.health_ms)):
        time.sleep(_HEALTH_PAUSE_S)  # without one of each there is nothing to tell
    elapsed_s = time.perf_counter() - started_s
    times_ms, health_ms = tally.inspections_ms.copy(), tally.health_ms.copy()
    tally.stop.set()
    for thread in threads:
        thread.join()
    if tally.broken:
        raise tally.broken[0]
    return Measured(
        device=device,
        clients=clients,
        fit=fit,
        images_per_s=len(times_ms) / elapsed_s,
        latency_ms=_percentiles(times_ms),
        n_inspections=len(times_ms),
        health_p99_ms=_percentiles(health_ms)[2],
        n_fits=len(tally.fits),
        n_refused=len(tally.refused),
    )


def _guarded(loop: _Loop, running: Running, tally: _Tally) -> None:
    try:
        with running.caller() as caller:
            loop(caller, tally)
    except (CallCutOff, CallFailed) as error:
        tally.broken.append(error)
        tally.stop.set()


@cache
def _request(size_px: int, number: int) -> Form:
    """Return an inspection of a part that is one client's own; rendered before the clock starts, and once."""
    return inspect(LOAD_ROI, encode_png(render_good(10_000 + number, size_px=size_px, mm_per_px=MM_PER_PX).image_bgr))


def _inspect(request: Form, caller: Client, tally: _Tally) -> None:
    while not tally.stop.is_set():
        started_s = time.perf_counter()
        answer = caller.send(request)
        if answer.status == 503:
            tally.refused.append(1)
            time.sleep(_REFUSED_PAUSE_S)
            continue
        tally.inspections_ms.append((time.perf_counter() - started_s) * 1e3)
        if answer.status != 200:
            raise CallFailed(answer.status, str(answer))


def _ask_health(caller: Client, tally: _Tally) -> None:
    while not tally.stop.is_set():
        started_s = time.perf_counter()
        caller.get("/health").ok()
        tally.health_ms.append((time.perf_counter() - started_s) * 1e3)
        time.sleep(_HEALTH_PAUSE_S)


def _fit(fit: str, pngs: Sequence[bytes], caller: Client, tally: _Tally) -> None:
    if fit == "picking":  # the same images with the same rate would only be found to be learned already
        rates = itertools.cycle((0.03, 0.02, 0.04))
        forms = (learn(REFIT_ROI, pngs, mode="replace", coreset_rate=rate) for rate in rates)
    else:
        stamp = time.monotonic_ns()
        forms = (learn(f"{_NEW_ROI}-{stamp}-{number}", pngs) for number in itertools.count())
    for request in forms:
        if tally.stop.is_set():
            break
        caller.send(request).ok()
        if not tally.stop.is_set():
            tally.fits.append(1)


def _percentiles(times_ms: Sequence[float]) -> tuple[float, float, float]:
    if not times_ms:
        return (float("inf"),) * 3
    p50, p95, p99 = np.percentile(times_ms, (50, 95, 99))
    return float(p50), float(p95), float(p99)
