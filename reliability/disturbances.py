"""What happens to a service on a bad day, one function for each kind; each takes as long as it is asked to."""

from __future__ import annotations

import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from backend.demo.client import CallCutOff, Client, Form, form
from reliability import parts
from reliability.line_disk import LineDisk, stopped
from reliability.outcomes import Tally
from reliability.servers import Server

DESCRIPTORS = 256
"""That each server may have open; the silent connections are more."""

_SILENT, _BOMBS, _BOMB_PX, _SLOW, _SLOW_BYTES, _BURST = 400, 24, 6_300, 60, 7_000_000, 100
_LONGEST_SKEW_S = 3e8
_BOMBED = "day-bombed"
_HELD_S = 10.0
"""A lock is held for so much longer than anything else takes: beyond what any call may wait for it."""
_HOLDER = (
    "import sys; from filelock import FileLock; FileLock(sys.argv[1]).acquire(); print(flush=True); sys.stdin.read()"
)


@dataclass(kw_only=True)
class Scene:
    """What the disturbances need.

    Attributes:
        servers: The processes.
        disk: Of the models folder.
        rois: The ROIs that are inspected.
        rng: Draws what is drawn.
        tally: Gets what is wrong.
        upload: Uploads the n-th image of its own to a ROI by a client, and notes what came of it.
        moved: When the audit was moved, and where to.
    """

    servers: Sequence[Server]
    disk: LineDisk
    rois: Sequence[str]
    rng: random.Random
    tally: Tally
    upload: Callable[[Client, str], None]
    moved: list[tuple[float, Path]] = field(default_factory=list)

    def client(self, server: Server) -> Client:
        """Return a client that waits for long."""
        return server.client(timeout_s=60.0)


Disturbance = Callable[[Scene, float], Server | None]
"""Disturbs for so many seconds, and returns the one server that it was done to, or None for all."""


def stop(scene: Scene, seconds: float) -> Server | None:
    """SIGSTOP and SIGCONT: a process that holds whatever it holds, and does nothing."""
    server = scene.rng.choice(scene.servers)
    with stopped(server.pid):
        time.sleep(seconds)
    return server


def lock(scene: Scene, seconds: float) -> Server | None:
    """Another process holds a ROI's lock, and many want to write to that ROI."""
    roi_id = scene.rng.choice(scene.rois)
    path = scene.disk.models_dir / parts.ROLE / roi_id / ".lock"

    def upload(_: int) -> None:
        with suppress(CallCutOff), scene.client(scene.servers[0]) as client:
            scene.upload(client, roi_id)

    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdout.readline()
        with ThreadPoolExecutor(_BURST) as pool:
            uploads = pool.map(upload, range(_BURST))
            time.sleep(_HELD_S + seconds)
            holder.stdin.close()
            list(uploads)
    return None


def fill(scene: Scene, seconds: float) -> Server | None:
    """The disk is full, and has room again."""
    with scene.disk.full():
        time.sleep(seconds)
    return None


def audit(scene: Scene, seconds: float) -> Server | None:
    """The file of the audit is moved away."""
    there = scene.disk.inside / "audit.sqlite3"
    away = scene.disk.aside / f"moved-{len(scene.moved)}.sqlite3"
    with suppress(FileNotFoundError):
        there.rename(away)
        scene.moved.append((time.monotonic(), away))
    time.sleep(seconds)
    return None


def unmount(scene: Scene, seconds: float) -> Server | None:
    """The models folder is gone, and comes back."""
    try:
        with scene.disk.away():
            time.sleep(seconds)
    except RuntimeError as error:
        scene.tally.findings.add("folder", str(error))
    return None


def descriptors(scene: Scene, seconds: float) -> Server | None:
    """More silent connections than a process may have files open."""
    server = scene.rng.choice(scene.servers)
    with _connections(server, _SILENT):
        time.sleep(seconds)
    return server


def bombs(scene: Scene, seconds: float) -> Server | None:
    """Small files of many pixels, all at once."""
    server, until_s = scene.rng.choice(scene.servers), time.monotonic() + seconds

    def send(number: int) -> None:
        learns = number % 3 == 0  # at a ROI of its own: it would be learned
        path, name = ("/fit_ok", "images") if learns else ("/infer", "image")
        roi_id = _BOMBED if learns else scene.rois[number % len(scene.rois)]
        with scene.client(server) as client:
            try:
                answer = client.send(_bomb(path, name, roi_id))
            except CallCutOff as error:
                scene.tally.findings.add("cut off", f"a bomb: {error}")
                return
        if answer.status >= 500 and answer.status != 503:
            scene.tally.findings.add("dishonest", f"a bomb: {answer}")

    with ThreadPoolExecutor(_BOMBS) as pool:
        [*pool.map(send, range(_BOMBS))]
    time.sleep(max(0.0, until_s - time.monotonic()))
    return server


def slow(scene: Scene, seconds: float) -> Server | None:
    """Uploads that come slower and slower, and never to an end."""
    server, done = scene.rng.choice(scene.servers), threading.Event()
    head = (
        f"POST /datasets/ok/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {_SLOW_BYTES}\r\n"
        'Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\nContent-Disposition: form-data; name="images"; '
        'filename="a.png"\r\n\r\n'
    )
    with _connections(server, _SLOW) as connections:

        def trickle() -> None:
            for connection in connections:
                with suppress(OSError):
                    connection.sendall(head.encode() + bytes(_SLOW_BYTES // 2))
            while not done.wait(0.5):
                for connection in connections:
                    with suppress(OSError):
                        connection.send(b"x")

        thread = threading.Thread(target=trickle)
        thread.start()
        time.sleep(seconds)
        done.set()
        for connection in connections:
            connection.close()
        thread.join()
    return server


def times(scene: Scene, seconds: float) -> Server | None:
    """The times of files lie years in the past and in the future."""
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        for path in [*scene.disk.models_dir.rglob("*")]:
            if scene.rng.random() < 0.3:
                then_s = time.time() + scene.rng.uniform(-_LONGEST_SKEW_S, _LONGEST_SKEW_S)
                with suppress(OSError):  # gone since
                    os.utime(path, (then_s, then_s))
        time.sleep(0.2)
    return None


DISTURBANCES: Mapping[str, Disturbance] = {
    each.__name__: each for each in (stop, lock, fill, audit, unmount, descriptors, bombs, slow, times)
}


@contextmanager
def _connections(server: Server, number: int) -> Iterator[list[socket.socket]]:
    """Open connections, as many as the server takes."""
    with ExitStack() as stack:
        opened = []
        for _ in range(number):
            with suppress(OSError):
                connection = socket.create_connection(("127.0.0.1", server.port), timeout=1.0)
                opened.append(stack.enter_context(connection))
        yield opened


@cache
def _bomb(path: str, name: str, roi_id: str) -> Form:
    fields = {**parts.roi(roi_id), "mm_per_px": parts.MM_PER_PX, "heatmap": "none"}
    return form(path, fields, name, [("bomb.png", _bomb_png())])


@cache
def _bomb_png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", _BOMB_PX, _BOMB_PX, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((_BOMB_PX + 1) * _BOMB_PX), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
