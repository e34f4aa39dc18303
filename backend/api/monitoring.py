"""Numbers for a monitoring system."""

from __future__ import annotations

from fastapi import APIRouter, Response

from backend.api.dependencies import MetricsOf
from backend.serving.access import INSPECT
from backend.serving.metrics import Metrics

router = APIRouter(tags=["monitoring"])


@router.get(
    "/metrics",
    summary="Numbers for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    **INSPECT,
)
def metrics(metrics: MetricsOf) -> Response:
    """Tell counts and times since the process started, in Prometheus' text format."""
    return Response(metrics.text(), media_type=Metrics.content_type)
