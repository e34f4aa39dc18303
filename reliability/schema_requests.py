"""Requests made from the OpenAPI document: as it allows them, and as it forbids them."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any, NoReturn

import hypothesis
import schemathesis
from hypothesis import strategies as st
from schemathesis.core.control import SkipTest
from schemathesis.core.result import Ok

from backend.app import create_app
from reliability import parts
from reliability.outcomes import Findings

_TIMEOUT_S = 30.0
_FITTED_ROI = "inspection-1"
_TEXTS = (
    "{}", '{"mm_per_px":0.2,"part_id":"a"}', '{"mm_per_px":1e400}', '{"x":NaN}', '{"x":"\\ud800"}', "[]", "null",
    '{"x":' + "[" * 600 + "]" * 600 + "}", '{"kind":"circle","cx":32,"cy":32,"r":20}', '{"kind":["rect"]}',
    '{"kind":"rect","x":-5,"y":0,"w":1e300,"h":1e-300}', '{"kind":"annulus","cx":32,"cy":32,"r":20,"r_inner":20}',
)  # fmt: skip


def send_schema_requests(
    port: int, number: int, seed: str, findings: Findings, step: Callable[[], None]
) -> Counter[int]:
    """Send requests to a server; return how many answers of each status came.

    Args:
        port: On the loopback interface.
        number: Of requests, about; every operation gets the same share, in both modes.
        seed: Draws them.
        findings: Get answers of 5xx but 503, what is no strict JSON, and calls that are not answered.
        step: Called after each request.
    """
    statuses: Counter[int] = Counter()
    images = [parts.png(1), parts.png(90), parts.png(1)[:200], b"", b"\xff\xd8\xff", b"GIF89a\0\0"]
    schemathesis.openapi.format("binary", st.sampled_from(images))
    document = create_app().openapi()
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    sent = 0
    for mode in modes:
        schema = schemathesis.openapi.from_dict(document)
        schema.config.generation.update(modes=[mode], deterministic=False, database="none")
        operations = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
        for place, operation in enumerate(operations):
            left = (len(modes) - modes.index(mode)) * len(operations) - place
            share = max(1, round((number - sent) / left))
            sent += share

            @hypothesis.seed(zlib.crc32(f"{seed} {mode} {operation.label}".encode()))
            @hypothesis.settings(
                max_examples=share,
                database=None,
                deadline=None,
                phases=[hypothesis.Phase.generate],
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def send(case: Any) -> None:
                statuses.update(_answered(_to_the_point(case), port, findings))
                step()

            try:
                send()
            except SkipTest:  # nothing can be wrong about a request without parameters
                continue
    return statuses


def _answered(case: Any, port: int, findings: Findings) -> list[int]:
    request = f"{case.method} {case.path} {str(case.query)[:300]} {str(case.body)[:300]}"
    try:
        response = case.call(base_url=f"http://127.0.0.1:{port}", timeout=_TIMEOUT_S)
    except Exception as error:  # whatever the client library makes of a connection that ended
        findings.add("hang", f"{request}: {error!r}"[:1500])
        return []
    if response.status_code >= 500 and response.status_code != 503:
        findings.add("5xx", f"{request}: {response.status_code} {response.text[:300]}")
    if response.headers.get("content-type") == ["application/json"] and response.text:
        try:
            json.loads(response.text, parse_constant=_refuse)
        except ValueError:
            findings.add("not JSON", f"{request}: {response.text[:300]}")
    return [response.status_code]


def _to_the_point(case: Any) -> Any:
    """Let every other request be about a ROI that there is, and let texts that hold JSON hold some."""
    number = zlib.crc32(repr((case.query, case.body)).encode("utf-8", "surrogatepass"))
    for sent in (case.query, case.body):
        if not isinstance(sent, dict):
            continue
        if "role_id" in sent and number % 2:
            sent.update(role_id=parts.ROLE, roi_id=_FITTED_ROI, model_key=_FITTED_ROI, recipe_id="default")
        if isinstance(sent.get("shape"), str):
            sent["shape"] = _TEXTS[number % len(_TEXTS)]
        if isinstance(sent.get("metas"), list) and isinstance(sent.get("images"), list):
            sent["metas"] = [_TEXTS[(number + n) % len(_TEXTS)] for n in range(len(sent["images"]))]
    return case


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)
