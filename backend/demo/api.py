"""The service as the demo calls it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from backend.demo.client import Client, form
from backend.demo.demo_parts import Part, PartSet
from backend.imaging.image_codec import encode_png
from backend.roi_mask import shape_fields

_ROLE_ID, _ROI_ID = "Demo", "part-1"


class Api:
    """The calls of the tour, as any client would make them; each raises as ``Client.ask`` and ``Answer.ok``.

    None of them names a setting, so what is seen is what the service does by default.
    """

    def __init__(self, client: Client, parts: PartSet, *, roi_id: str = _ROI_ID) -> None:
        self.parts = parts
        self._client = client
        self._roi: dict[str, object] = {"role_id": _ROLE_ID, "roi_id": roi_id, "mm_per_px": parts.mm_per_px}
        self._shape = None if parts.ring is None else json.dumps(shape_fields(parts.ring))

    def fit(self) -> dict[str, Any]:
        """Learn the good parts, in place of whatever was learned before."""
        return self._send("/fit_ok", "images", self.parts.fit, mode="replace")

    def calibrate(self, ng_scores: Sequence[float]) -> dict[str, Any]:
        """Set the threshold, from the service's own leave-one-image-out scores of the good parts."""
        body = {**self._roi, "ng_scores": list(ng_scores) or None}
        return dict(self._client.post("/calibrate_ng", body).ok())

    def infer(self, part: Part) -> dict[str, Any]:
        """Inspect one part."""
        return self._send("/infer", "image", [part])

    def keep_bad(self, parts: Sequence[Part]) -> None:
        """Store bad parts in the data set of the ROI."""
        fields = {name: self._roi[name] for name in ("role_id", "roi_id")}
        fields["metas"] = json.dumps({"mm_per_px": self._roi["mm_per_px"]})
        for part in parts:
            image = (part.name, encode_png(part.image_bgr))
            self._client.send(form("/datasets/ng/upload", fields, "images", [image])).ok()

    def _send(self, path: str, field_name: str, parts: Sequence[Part], **fields: str) -> dict[str, Any]:
        images = [(part.name, encode_png(part.image_bgr)) for part in parts]
        request = form(path, {**self._roi, "shape": self._shape, **fields}, field_name, images)
        return dict(self._client.send(request).ok())
