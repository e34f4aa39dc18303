"""Servers to measure, each in a process of its own, and what is asked of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from backend.demo.client import Client, Form, fit_form, infer_form, numbered
from backend.demo.service_process import PLAIN_UVICORN, ServiceProcess, environment_with
from benchmarks.vitals import vitals

SERVICE = PLAIN_UVICORN
REFERENCE = ("-m", "uvicorn", "--factory", "benchmarks.references:reference_app")
STUBBED = ("-m", "uvicorn", "--factory", "benchmarks.stub:stubbed_app")

ROLE, MM_PER_PX = "Inspection", 0.2
_ROOT = Path(__file__).resolve().parent.parent
_CALL_S = 600.0


def roi(roi_id: str) -> dict[str, object]:
    """Return the fields that every request about a ROI has."""
    return {"role_id": ROLE, "roi_id": roi_id, "mm_per_px": MM_PER_PX}


def learn(roi_id: str, pngs: Sequence[bytes], **fields: object) -> Form:
    """Return a request to learn good images."""
    return fit_form(roi(roi_id), numbered(pngs), **fields)


def inspect(roi_id: str, png: bytes) -> Form:
    """Return a request to inspect one image."""
    return infer_form(roi(roi_id), ("0.png", png))


class Running(ServiceProcess):
    """A server that is being measured."""

    def caller(self) -> Client:
        """Return a client."""
        return self.client(timeout_s=_CALL_S)

    def seconds_until_health_answers(self) -> float:
        """Return how long after the start of the process ``GET /health`` answered first; call it right after it."""
        self.wait_until_it_answers()
        return time.perf_counter() - self.started_s

    def seconds_until_ready(self) -> float:
        """Return how long after the start of the process the extractor was there."""
        self.wait_until_ready()
        return time.perf_counter() - self.started_s

    def resident_mb(self) -> float | None:
        """Return the memory that the process holds, MB (10⁶ bytes), or None where the system does not tell."""
        held = vitals(self.process.pid)
        return None if held is None else held.resident_mb


@contextmanager
def serving(
    command: Sequence[str],
    folder: Path,
    *,
    settings: Mapping[str, object],
    environment: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """Run an application in a process of its own for the ``with`` block.

    Args:
        command: ``SERVICE``, ``REFERENCE`` or ``STUBBED``.
        folder: For its log.
        settings: Of the service, by their names in ``Settings``.
        environment: More variables.
    """
    variables = {**environment_with(settings), **(environment or {})}
    log = folder / f"server-{time.monotonic_ns()}.log"
    with Running(log, variables, command=[*command, "--no-access-log"], cwd=_ROOT) as running:
        running.launch()
        yield running
