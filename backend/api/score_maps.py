"""Where a stored image differs from the other good ones."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response

from backend.api.datasets import FileName, LabelOf
from backend.api.dependencies import DatasetsOf, KeyOfQuery, ServiceOf
from backend.api.fields import PNG_FILE, EdgePx
from backend.api.own_threads import on_readers_threads
from backend.api.routing import Route
from backend.imaging.image_codec import encode_png
from backend.imaging.preview import shrunk
from backend.services.dataset_runs import inspect_stored
from backend.serving.access import INSPECT

router = APIRouter(tags=["models"], route_class=Route)


@router.get(
    "/scores/map",
    summary="The anomaly map of one stored image",
    response_class=Response,
    responses={
        200: {
            "description": "A PNG; the headers X-Score and X-Scoring say what it comes from.",
            "content": {"image/png": {"schema": PNG_FILE}},
        }
    },
    **INSPECT,
)
@on_readers_threads
def score_map(
    service: ServiceOf,
    datasets: DatasetsOf,
    key: KeyOfQuery,
    label: LabelOf,
    filename: FileName,
    view: Annotated[
        Literal["overlay", "heatmap"],
        Query(description="`overlay`: the image with map and regions drawn.", examples=["overlay"]),
    ] = "overlay",
    edge_px: EdgePx = 1024,
) -> Response:
    """Return the map that a stored image's score comes from: of a learned one, compared with the other parts alone."""
    inspection = inspect_stored(service, datasets, key, datasets.get(key, label, filename))
    pixels = inspection.overlay if view == "overlay" else inspection.heatmap
    headers = {"X-Score": repr(inspection.score), "X-Scoring": str(inspection.params["scoring"])}
    return Response(encode_png(shrunk(pixels, edge_px)), media_type="image/png", headers=headers)
