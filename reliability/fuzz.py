"""Requests that no client should send: never a 5xx but 503, never a hang, nothing that grows, nothing outside.

    python -m reliability.fuzz [--requests 20000] [--seed 0] [--json fuzz.json] [--update docs/reliability.md]

Three quarters are captured requests of .NET's HttpClient, mutated byte by byte and rule by rule and sent over raw
sockets; one in twenty hangs up without reading. One quarter is made from the OpenAPI document, half of it as the
document allows and half as it forbids. Meanwhile and afterwards the same part must get the same score.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from backend.demo.client import CallCutOff
from backend.demo.service_process import ServiceFailed
from benchmarks.vitals import Vitals, vitals
from reliability import parts
from reliability.checks import folder_problems, leftovers
from reliability.command import run_command
from reliability.exchanges import ANSWER_S, exchange
from reliability.mutations import captured_requests, mutated
from reliability.outcomes import Claim, Findings, Outcome
from reliability.schema_requests import send_schema_requests
from reliability.servers import Server

CONTROL_ROI = "control"
GROWTH = 0.10
"""How much larger than after the warm-up the process may be at the end: heaps fragment under requests of every size."""

_SETTINGS = {"max_pixels": 4_000_000, "max_body_mb": 8, "max_images": 8, "cache_max_entries": 4}
_CLIENTS = 4
_CONTROL_EVERY = 250
_HANG_UPS = 0.05
_SCHEMA_SHARE = 0.25
_WARM_UP_SHARE = 0.3
_SETTLE_S = 2.0
_UNFORESEEN = ("Exception in ASGI application", "internal_error", "Task exception was never retrieved")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much; each field is an option of the command."""

    requests: int = field(default=20_000, metadata={"help": "in all"})
    seed: int = field(default=0, metadata={"help": "draws them"})


@dataclass
class _Tally:
    findings: Findings = field(default_factory=Findings)
    statuses: Counter[int] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    raw: int = 0
    controls: int = 0
    slowest_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


def run(plan: Plan, folder: Path, *, step: Callable[[], None] = lambda: None) -> Outcome:
    """Return what came of the requests.

    Args:
        plan: How much.
        folder: For the server's models and log.
        step: Called after each request.
    """
    tally, started_s = _Tally(), time.perf_counter()
    n_schema = round(_SCHEMA_SHARE * plan.requests)
    n_raw = plan.requests - n_schema
    n_warm = round(_WARM_UP_SHARE * n_raw)
    with Server(folder, settings=_SETTINGS) as server:
        server.start()
        score = _prepare(server)
        _send_mutated(server, range(n_warm), plan.seed, score, tally, step)
        schema_warm = send_schema_requests(
            server.port, round(_WARM_UP_SHARE * n_schema), f"{plan.seed}-warm", tally.findings, step
        )
        before = _settled(server)
        _send_mutated(server, range(n_warm, n_raw), plan.seed, score, tally, step)
        schema_rest = send_schema_requests(
            server.port, n_schema - round(_WARM_UP_SHARE * n_schema), f"{plan.seed}", tally.findings, step
        )
        tally.statuses.update(schema_warm + schema_rest)
        _control(server, score, tally)
        after = _settled(server)
        tally.findings.extend("folder", [*folder_problems(server.models_dir), *leftovers(server.models_dir)])
        tally.findings.extend("outside", map(str, server.elsewhere.rglob("*")))
        server.stop()
        tally.findings.extend("log", _failures(server))
    return _outcome(tally, before, after, time.perf_counter() - started_s)


def _prepare(server: Server) -> float:
    """Fit and calibrate a ROI that no request names; return the score of a part."""
    with server.client() as client:
        for answer in (
            client.send(parts.fit(CONTROL_ROI, range(4))),
            client.post("/calibrate_ng", {**parts.roi(CONTROL_ROI), "mm_per_px": parts.MM_PER_PX}),
            client.send(parts.fit("inspection-1", range(4))),
        ):
            if answer.status != 200:
                raise ServiceFailed(f"the server does not learn: {answer}")
        return float(client.send(parts.infer(CONTROL_ROI, parts.PROBE)).json["score"])


def _send_mutated(
    server: Server, numbers: Sequence[int], seed: int, score: float, tally: _Tally, step: Callable[[], None]
) -> None:
    requests = [*captured_requests().values(), *_plain_requests()]

    def send(number: int) -> None:
        rng = random.Random(f"{seed}-{number}")
        sent = mutated(requests, rng)
        hang_up = rng.random() < _HANG_UPS
        try:
            found = exchange(server.port, sent.pieces, hang_up=hang_up)
        except OSError as error:
            tally.findings.add("unreachable", f"request {number} ({', '.join(sent.rules)}): {error}")
            return
        with tally.lock:
            tally.raw += 1
            tally.rules.update(sent.rules)
            tally.statuses.update(found.statuses)
            tally.slowest_s = max(tally.slowest_s, found.elapsed_s)
        exchanged = f"request {number} ({', '.join(sent.rules)}): {sent.data[:200]!r} → {found.received[:300]!r}"
        if found.timed_out:
            tally.findings.add("hang", exchanged)
        if any(status >= 500 and status != 503 for status in found.statuses):
            tally.findings.add("5xx", exchanged)
        if not _is_strict(found.received):
            tally.findings.add("not JSON", exchanged)
        if number % _CONTROL_EVERY == 0:
            _control(server, score, tally)
        step()

    with ThreadPoolExecutor(_CLIENTS) as pool:
        for _ in pool.map(send, numbers):
            pass


def _plain_requests() -> list[bytes]:
    """Return requests that the captured client does not send: of the other endpoints and other kinds of body."""
    ids = "role_id=Inspection&roi_id=inspection-1"
    gets = [f"/{name}?{ids}" for name in ("state", "manifest", "datasets/list", "versions")]
    gets += [f"/datasets/file?{ids}&label=ok&filename=x-0123456789ab.png", "/health", "/recipes", "/jobs/" + "0" * 32]
    bodies = {
        "/calibrate_dataset": {"role_id": "Inspection", "roi_id": "inspection-1", "default_mm_per_px": 0.2},
        "/infer_dataset": {"role_id": "Inspection", "roi_id": "inspection-2", "include_heatmap": True},
        "/refit": {"role_id": "Inspection", "roi_id": "inspection-1", "force": True},
        "/versions/activate": {"role_id": "Inspection", "roi_id": "inspection-1", "version": 1, "reason": "back"},
        "/versions/compare": {"role_id": "Inspection", "roi_id": "inspection-1", "a": 1, "b": None},
        "/recipes/copy": {"source": "nothing", "target": "copy"},
    }
    requests = [f"GET {path} HTTP/1.1\r\nHost: line-pc\r\nX-Recipe-Id: default\r\n\r\n".encode() for path in gets]
    requests.append(b"DELETE /recipes?recipe_id=nothing HTTP/1.1\r\nHost: line-pc\r\n\r\n")
    requests.append(f"DELETE /datasets/clear?{ids}&label=ng HTTP/1.1\r\nHost: line-pc\r\n\r\n".encode())
    for path, value in bodies.items():
        body = json.dumps(value).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: line-pc\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        requests.append(head.encode() + b"\r\n\r\n" + body)
    return requests


def _is_strict(received: bytes) -> bool:
    """Return whether a JSON body is JSON for readers that know no NaN."""
    head, _, body = received.partition(b"\r\n\r\n")
    length = len(body)
    if b"application/json" not in head or f"content-length: {length}".encode() not in head.lower() or not length:
        return True  # none, not whole, or an answer to HEAD
    try:
        json.loads(body, parse_constant=_refuse)
    except ValueError:
        return False
    return True


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _control(server: Server, score: float, tally: _Tally) -> None:
    """Inspect the part that was inspected before anything else was sent."""
    with server.client() as client:
        try:
            health, answer = client.get("/health"), client.send(parts.infer(CONTROL_ROI, parts.PROBE))
        except CallCutOff as error:
            tally.findings.add("control", str(error))
            return
    with tally.lock:
        tally.controls += 1
    if health.status != 200 or answer.status != 200 or answer.json["score"] != score:
        tally.findings.add("control", f"{health}; {answer}; expected the score {score}")


def _settled(server: Server) -> Vitals | None:
    """Return what the process holds once the connections that were hung up are gone."""
    time.sleep(_SETTLE_S)
    return vitals(server.pid)


def _failures(server: Server) -> list[str]:
    """Return the end of every line of the log that tells of an error that nobody foresaw, where its cause stands."""
    lines = server.log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line[-1500:] for line in lines if any(text in line for text in _UNFORESEEN)]


def _outcome(tally: _Tally, before: Vitals | None, after: Vitals | None, elapsed_s: float) -> Outcome:
    findings, statuses = tally.findings, tally.statuses
    n_failures = findings.count("5xx", "log")
    shown = ", ".join(f"{status}: {number}" for status, number in sorted(statuses.items()))
    claims = [
        Claim(
            text="No answer is a 5xx but 503, and each JSON body is strict JSON",
            figure=f"{statuses.total()} answers ({shown}); {n_failures} failures, "
            f"{findings.count('not JSON')} not JSON",
            holds=n_failures + findings.count("not JSON") == 0 and statuses.total() > 0,
        ),
        Claim(
            text=f"No request hangs: whole ones are answered or cut off within {ANSWER_S:g} s",
            figure=f"{findings.count('hang', 'unreachable')}; the slowest exchange took {tally.slowest_s:.2f} s",
            holds=findings.count("hang", "unreachable") == 0,
        ),
        Claim(
            text="Meanwhile and afterwards the same part gets the same score, and /health answers",
            figure=f"{tally.controls} inspections, {findings.count('control')} otherwise",
            holds=findings.count("control") == 0 and tally.controls > 0,
        ),
        Claim(
            text="Nothing is written outside the models folder, and that one is whole",
            figure=f"{findings.count('outside')} files outside, {findings.count('folder')} problems inside",
            holds=findings.count("outside", "folder") == 0,
        ),
    ]
    if before is not None and after is not None:
        grown = after.resident_mb / before.resident_mb - 1
        claims.append(
            Claim(
                text=f"After a warm-up memory grows by no more than {GROWTH:.0%}, descriptors not at all, and threads "
                f"by no more than the {_CLIENTS} clients can keep busy",
                figure=f"{before.resident_mb:.0f} → {after.resident_mb:.0f} MB ({grown:+.1%}), descriptors "
                f"{before.descriptors} → {after.descriptors}, threads {before.threads} → {after.threads}",
                holds=grown <= GROWTH
                and after.descriptors <= before.descriptors
                and after.threads <= before.threads + _CLIENTS,
            )
        )
    return Outcome(
        name="fuzz",
        claims=claims,
        figures={
            "raw_requests": tally.raw,
            "answers": statuses.total(),
            "statuses": {str(status): number for status, number in sorted(statuses.items())},
            "rules": dict(tally.rules),
            "findings": dict(findings.counts),
            "slowest_s": tally.slowest_s,
            "elapsed_s": elapsed_s,
        },
        findings=findings.words,
    )


if __name__ == "__main__":
    run_command("fuzz", __doc__, Plan, run, lambda plan: plan.requests)
