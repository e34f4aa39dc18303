"""Whether the service can inspect, and numbers for a monitoring system."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from backend import __version__
from backend.api.dependencies import GateOf, HistoryOf, MetricsOf, ServiceOf, SettingsOf, StorageHealthOf
from backend.api.fields import Count, Pair, Reply
from backend.api.routing import Route
from backend.extractors.base import EngineOrigin, HasEngine
from backend.serving.access import INSPECT, OPEN, may_know_paths
from backend.serving.metrics import Metrics

router = APIRouter(route_class=Route)


class EngineAnswer(BaseModel):
    """What computes the extractor's network."""

    name: str = Field(description="`torch` or `openvino`.", examples=["openvino"])
    precision: str = Field(description="What it multiplies in.", examples=["bf16"])
    origin: EngineOrigin = Field(
        description="Whether the graph is the network itself, was converted at this start, or at an earlier one.",
        examples=["read from cache"],
    )
    warm_input_hw: list[Pair] = Field(
        description="Input sizes (height, width, px) whose next image waits for nothing.", examples=[[[378, 378]]]
    )


class HealthAnswer(Reply):
    """Whether the service can inspect."""

    status: Literal["ok", "degraded", "starting", "stopping"] = Field(
        description="`starting` while the extractor loads, `stopping` while the last calls are answered.",
        examples=["ok"],
    )
    device: Literal["cpu", "cuda"] = Field(description="Where the extractor runs.", examples=["cpu"])
    model: str = Field(description="The extractor.", examples=["dinov2-vit-s/14"])
    version: str = Field(description="Version of the service.", examples=["0.1.0"])
    engine: EngineAnswer | None = Field(None, description="null: the extractor is still loading, or has no network.")
    reason: str | None = Field(None, description="What is degraded, and how to mend it.", examples=[None])
    history_dropped: Count = Field(
        0,
        description="Decisions since the start that the history could not keep; they were given all the same.",
        examples=[0],
    )
    models_dir: str | None = Field(
        None,
        description="Absolute path of the models folder; only with a key of the role admin, or, where no keys are set, "
        "from this machine.",
        examples=[None],
    )


@router.get("/health", summary="Whether the service can inspect", tags=["inspection"], **OPEN)
async def health(
    request: Request,
    service: ServiceOf,
    settings: SettingsOf,
    gate: GateOf,
    storage: StorageHealthOf,
    history: HistoryOf,
) -> HealthAnswer:
    """Answer at once, whatever the device is doing. Where keys are needed, a caller without one is told no reason.

    503 `storage_failed`: the models folder has vanished, and nothing can be inspected.
    """
    state = service.extractor.state
    stored = await storage.state()
    if stored.failure is not None and not gate.stopping:
        raise stored.failure
    faults = [each for each in (*stored.reasons, service.store.quarantine.reason, history.fault) if each]
    degraded = " ".join(reason for reason in (state.reason, *faults) if reason) or None
    reason = "The service is stopping." if gate.stopping else degraded
    if reason and request.app.state.api_keys and request.state.caller is None:
        reason = "Ask with an API key for the reason."  # a reason may name a ROI
    device = state.extractor.device if state.extractor else settings.device
    hoped_for = "filter-bank" if settings.extractor == "filter-bank" else "dinov2-vit-s/14"
    engine = state.extractor.engine_facts() if isinstance(state.extractor, HasEngine) else None
    return HealthAnswer(
        status="stopping" if gate.stopping else "degraded" if faults and state.status == "ok" else state.status,
        device="cuda" if device.startswith("cuda") else "cpu",
        model=state.extractor.name if state.extractor else hoped_for,
        version=__version__,
        engine=None if engine is None else EngineAnswer(**asdict(engine)),
        reason=reason,
        history_dropped=history.dropped,
        models_dir=str(settings.models_dir.absolute()) if may_know_paths(request) else None,
        request_id=request.state.request_id,
    )


@router.get(
    "/metrics",
    summary="Numbers for Prometheus",
    tags=["monitoring"],
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    **INSPECT,
)
def metrics(metrics: MetricsOf) -> Response:
    """Tell counts and times since the process started, in Prometheus' text format."""
    return Response(metrics.text(), media_type=Metrics.content_type)
