"""The proofs from outside, in small; and that each of them fails when what it looks at is broken."""

from __future__ import annotations

import argparse
import io
import json
import random
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.machine import machine_facts
from benchmarks.vitals import Vitals
from reliability import crowd, fuzz, kills, parts, soak
from reliability.checks import leftovers
from reliability.command import block, publish
from reliability.exchanges import exchange, is_whole
from reliability.moments import Pulse, temporary_files
from reliability.mutations import captured_requests, mutated
from reliability.outcomes import Claim, Findings, Outcome
from reliability.recovery import differences
from reliability.reference import Reference
from reliability.servers import Server
from reliability.worlds import Call, RoiState, contradictions

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the proofs kill process groups and read /proc"
)

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BLOCKS = ("kills", "fuzz", "crowd", "hostile_day", "soak")


def _failed(outcome: Outcome) -> list[object]:
    return [*(claim for claim in outcome.claims if not claim.holds), *outcome.findings]


# --- the proofs -------------------------------------------------------------------------------------------------------


def test_nothing_acknowledged_is_lost_when_the_server_is_killed(tmp_path: Path) -> None:
    outcome = kills.run(kills.Plan(kills=3, arenas=1), tmp_path)
    assert outcome.holds, _failed(outcome)
    assert outcome.figures["kills"] == 3
    assert sum(outcome.figures["acknowledged"].values()) > 0
    assert sum(outcome.figures["cut_off"].values()) >= 3, "every kill meets calls in flight"


def test_acknowledged_images_that_are_gone_after_a_kill_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill = Server.kill

    def kill_and_lose(server: Server) -> None:
        kill(server)
        for path in server.models_dir.glob("*/*/images/*/*.json"):
            path.unlink()

    def after_calls_that_brought_images(_moment: str, _rng: object, pulse: Pulse, _models_dir: Path) -> None:
        while pulse.ended < 4:
            pulse.next_call()

    monkeypatch.setattr(Server, "kill", kill_and_lose)
    monkeypatch.setattr(kills, "wait_for", after_calls_that_brought_images)
    outcome = kills.run(kills.Plan(kills=1, arenas=1, seed=1), tmp_path)
    assert not outcome.claims[0].holds
    assert outcome.figures["findings"]["lost"] >= 1


def test_requests_that_no_client_should_send_do_no_harm(tmp_path: Path) -> None:
    outcome = fuzz.run(fuzz.Plan(requests=200, seed=7), tmp_path)
    behaviour, growth = outcome.claims[:-1], outcome.claims[-1]
    assert all(claim.holds for claim in behaviour), _failed(outcome)
    assert "After a warm-up" in growth.text, "judged after thousands of requests, not after these"
    assert outcome.figures["answers"] >= 100
    assert {"200", "400", "422"} <= set(outcome.figures["statuses"]), "some get through, some do not"


def test_processes_that_share_a_folder_answer_as_one(tmp_path: Path) -> None:
    outcome = crowd.run(crowd.Plan(minutes=2 / 60, processes=2, clients=4), tmp_path)
    assert outcome.holds, _failed(outcome)
    assert outcome.figures["inspections"] >= 20
    assert set(outcome.figures["calls"]) >= {"infer", "fit", "calibrate"}


def test_a_steady_load_is_answered_and_measured(tmp_path: Path) -> None:
    outcome = soak.run(soak.Plan(minutes=3 / 60, clients=2), tmp_path)
    growth, rest = outcome.claims[:3], outcome.claims[3:]
    assert all(claim.holds for claim in rest), _failed(outcome)
    assert "MB by quarters" in growth[0].figure, "seconds are all warm-up; minutes are judged"
    assert len(outcome.figures["samples"]) >= 8


# --- what a kill may leave --------------------------------------------------------------------------------------------

BEFORE = RoiState(learned=frozenset({1, 2}), mark=1, ok=frozenset({1, 2, 7}), ng=frozenset({1000}))
FIT = Call(
    kind="fit",
    images=(3, 4),
    after=replace(BEFORE, learned=frozenset({1, 2, 3, 4}), ok=frozenset({1, 2, 3, 4, 7})),
)
REPLACE = Call(kind="replace", images=(3, 4), after=replace(BEFORE, learned=frozenset({3, 4}), ok=frozenset({3, 4, 7})))
CALIBRATE = Call(kind="calibrate", after=replace(BEFORE, mark=2))
CLEAR = Call(kind="clear", after=replace(BEFORE, ok=frozenset()))


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (None, BEFORE),
        (FIT, BEFORE),
        (FIT, FIT.after),
        (FIT, replace(BEFORE, ok=frozenset({1, 2, 3, 7}))),
        (REPLACE, replace(REPLACE.after, ok=frozenset({1, 3, 4, 7}))),
        (CALIBRATE, BEFORE),
        (CALIBRATE, CALIBRATE.after),
        (CLEAR, replace(BEFORE, ok=frozenset({2}))),
    ],
)
def test_all_or_nothing_of_a_call_that_was_cut_off_is_legal(call: Call | None, found: RoiState) -> None:
    assert contradictions(BEFORE, call, found) == []


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (None, replace(BEFORE, mark=None)),
        (None, replace(BEFORE, ok=frozenset({1, 2}))),
        (None, replace(BEFORE, ng=frozenset())),
        (None, FIT.after),
        (FIT, replace(FIT.after, mark=None)),
        (FIT, replace(FIT.after, ok=BEFORE.ok)),
        (FIT, replace(BEFORE, learned=frozenset({1, 2, 3}))),
        (REPLACE, replace(BEFORE, ok=frozenset({2, 3, 4, 7}))),
        (CALIBRATE, replace(BEFORE, mark=None)),
        (CALIBRATE, replace(CALIBRATE.after, learned=frozenset())),
        (CLEAR, replace(BEFORE, ng=frozenset())),
    ],
)
def test_a_mixture_or_a_loss_is_not(call: Call | None, found: RoiState) -> None:
    assert contradictions(BEFORE, call, found)


def test_the_reference_tells_memories_and_scores_apart(tmp_path: Path) -> None:
    reference = Reference(tmp_path)
    try:
        some, more = reference.generation({1, 2}), reference.generation({1, 2, 3})
        assert some is reference.generation({2, 1})
        assert some.checksum != more.checksum
        assert reference.score({1, 2}) != reference.score({1, 2, 3})
        assert reference.generation({1}).threshold is None
        honest = {
            "score": reference.score({1, 2}),
            "threshold": some.threshold,
            "params": {"memory_checksum": some.checksum, "area_mm2_thr": 1.0},
        }
        state = RoiState(learned=frozenset({1, 2}), mark=1)
        assert differences(honest, state, reference) == []
        for name, value in (("score", honest["score"] + 1e-12), ("threshold", None)):
            assert len(differences({**honest, name: value}, state, reference)) == 1
    finally:
        reference.close()


# --- raw requests -----------------------------------------------------------------------------------------------------


def test_mutations_are_drawn_from_a_seed_and_are_many() -> None:
    requests = [*captured_requests().values()]
    assert len(requests) == 4
    one, same = (mutated(requests, random.Random("0-1")) for _ in range(2))
    assert one == same
    drawn = [mutated(requests, random.Random(f"0-{number}")) for number in range(400)]
    assert len({sent.data for sent in drawn} - set(requests)) > 350
    assert len({rule for sent in drawn for rule in sent.rules}) >= 18
    assert sum(is_whole(sent.data) for sent in drawn) > 200, "most get past the framing"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", False),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nab", False),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab", True),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", False),
        (b"\0\r\n\r\n", True),
    ],
)
def test_a_request_is_known_to_be_whole_or_not(data: bytes, expected: bool) -> None:
    assert is_whole(data) is expected


@pytest.mark.parametrize(
    ("answer", "statuses", "timed_out"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab", [200], False),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 422 X\r\nContent-Length: 0\r\n\r\n", [100, 422], False),
        (b"HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", [500], False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", [200], False),
        (b"", [], True),
    ],
)
def test_an_exchange_tells_answers_from_silence(
    monkeypatch: pytest.MonkeyPatch, answer: bytes, statuses: list[int], timed_out: bool
) -> None:
    if timed_out:
        monkeypatch.setattr("reliability.exchanges.ANSWER_S", 0.3)
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answer)
                done.wait(10)

        thread = threading.Thread(target=serve)
        thread.start()
        found = exchange(listener.getsockname()[1], [b"HEAD / HTTP/1.1\r\n", b"Host: a\r\n\r\n"])
        done.set()
        thread.join()
    assert (found.statuses, found.timed_out) == (statuses, timed_out)


# --- what is left behind, and what grows ------------------------------------------------------------------------------


def test_locks_that_are_held_and_temporary_files_are_found(tmp_path: Path) -> None:
    from filelock import FileLock

    roi = tmp_path / "Inspection" / "a"
    (roi / "images" / "ok").mkdir(parents=True)
    (roi / "images" / "ok" / ".tmp-00").write_bytes(b"")
    assert len(leftovers(tmp_path)) == 1
    with FileLock(roi / ".lock", thread_local=False):
        assert len(leftovers(tmp_path)) == 2
    assert [*temporary_files(tmp_path)] == [str(roi / "images" / "ok" / ".tmp-00")]


def _samples(slope_mb: float, *, descriptors: int = 0) -> list[soak.Sample]:
    held = Vitals(resident_mb=150, descriptors=10, sockets=4, threads=9)
    return [
        soak.Sample(
            at_s=at,
            vitals=replace(
                held, resident_mb=150 + (60 if at < 20 else 0) + slope_mb * at, descriptors=10 + at * descriptors // 50
            ),
            folder_mb=1.0,
            jobs=min(at, 200),
        )
        for at in range(100)
    ]


@pytest.mark.parametrize(
    ("samples", "holds"),
    [
        (_samples(0.0), [True, True, True]),
        (_samples(0.05), [True, True, True]),
        (_samples(0.2), [False, True, True]),
        (_samples(0.0, descriptors=4), [True, False, True]),
        ([replace(one, folder_mb=1 + one.at_s) for one in _samples(0.0)], [True, True, False]),
        ([replace(one, jobs=int(9 * one.at_s)) for one in _samples(0.0)], [True, True, False]),
        (_samples(0.0)[:5], [False]),
    ],
)
def test_growth_after_the_warm_up_is_noticed_and_before_is_not(samples: list[soak.Sample], holds: list[bool]) -> None:
    assert [claim.holds for claim in soak.growth_claims(samples)] == holds


# --- the page ---------------------------------------------------------------------------------------------------------


def _outcome(holds: bool) -> Outcome:
    claim = Claim(text="It holds", figure="3 of 3", holds=holds)
    return Outcome(name="soak", claims=[claim], figures={"elapsed_s": 90.0}, findings=[] if holds else ["lost: a"])


@pytest.mark.parametrize(("holds", "status"), [(True, 0), (False, 1)])
def test_outcomes_are_printed_written_and_put_into_the_page(tmp_path: Path, holds: bool, status: int) -> None:
    page, out, console = tmp_path / "page.md", tmp_path / "deep" / "out.json", Console(file=io.StringIO(), width=200)
    page.write_text("Before.\n<!-- soak -->\nnot measured yet\n<!-- /soak -->\nAfter.\n", encoding="utf-8")
    arguments = argparse.Namespace(json=out, update=page)
    assert publish([_outcome(holds)], arguments, console=console) == status
    text = page.read_text(encoding="utf-8")
    assert f"| It holds | 3 of 3 | {'yes' if holds else '**NO**'} |" in text
    assert "not measured yet" not in text
    assert "in 1.5 min on" in text
    assert json.loads(out.read_text(encoding="utf-8"))["outcomes"][0]["claims"][0]["holds"] is holds
    assert console.file.getvalue().count("lost: a") == (not holds)  # type: ignore[attr-defined]


def test_the_page_in_the_docs_has_a_block_for_each_proof() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in BLOCKS:
        assert page.count(f"<!-- {name} -->") == page.count(f"<!-- /{name} -->") == 1
    assert block(_outcome(True), machine_facts()).startswith("| claim | figure | holds |\n")


def test_findings_are_counted_in_full_and_kept_at_first() -> None:
    findings = Findings()
    for number in range(200):
        findings.add("lost" if number % 2 else "hang", str(number))
    assert (findings.count(), findings.count("lost"), len(findings.words)) == (200, 100, 50)


def test_parts_are_told_apart_by_the_names_that_the_service_lists() -> None:
    listed = [f"0-{parts.digits(5)}.png", f"a-b-{parts.digits(7)}.png"]
    assert parts.numbers(listed, range(10)) == {5, 7}
    with pytest.raises(KeyError):
        parts.numbers(["0-000000000000.png"], range(10))
