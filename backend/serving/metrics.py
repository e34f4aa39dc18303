"""What a monitoring system reads: how long inspections take, stage by stage, and what they decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from backend.artifacts.model_key import ModelKey
from backend.scoring.inspection import Decision

_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The counters of one application; a registry of its own, so that two applications do not add up.

    Args:
        in_flight: Returns how many requests are under way.
        history_dropped: Returns how many decisions the history could not keep.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, *, in_flight: Callable[[], int], history_dropped: Callable[[], int] = lambda: 0) -> None:
        self._registry = CollectorRegistry()
        self._stages = Histogram(
            "bdi_inspection_seconds",
            "Time of one inspection by stage; `total` is the whole call.",
            ["stage"],
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        self._inspections = Counter(
            "bdi_inspections",
            "Inspections by ROI and decision; `none` where the ROI is not calibrated.",
            ["recipe_id", "role_id", "roi_id", "decision"],
            registry=self._registry,
        )
        self._fits = Counter("bdi_fits", "Fits by ROI.", ["recipe_id", "role_id", "roi_id"], registry=self._registry)
        self._errors = Counter("bdi_errors", "Error answers by code.", ["code"], registry=self._registry)
        Gauge(
            "bdi_requests_in_flight", "Requests that have begun and are not answered yet.", registry=self._registry
        ).set_function(in_flight)
        Gauge(
            "bdi_history_dropped",
            "Decisions and marks since the start that the history could not keep.",
            registry=self._registry,
        ).set_function(history_dropped)

    def count_inspection(self, key: ModelKey, decision: Decision | None, timings_ms: Mapping[str, float]) -> None:
        """Count one inspection and its times."""
        self._inspections.labels(key.recipe_id, key.role_id, key.roi_id, decision or "none").inc()
        for stage, elapsed_ms in timings_ms.items():
            self._stages.labels(stage).observe(elapsed_ms / 1e3)

    def count_fit(self, key: ModelKey) -> None:
        """Count one fit."""
        self._fits.labels(key.recipe_id, key.role_id, key.roi_id).inc()

    def count_error(self, code: str) -> None:
        """Count one error answer."""
        self._errors.labels(code).inc()

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)
