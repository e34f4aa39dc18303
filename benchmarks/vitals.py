"""What a process holds: memory, descriptors, threads, sockets; read from /proc, so only on Linux."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Vitals:
    """A process at one moment.

    Attributes:
        resident_mb: Its memory, MB (10⁶ bytes).
        descriptors: Open files and sockets.
        sockets: Those of them that are sockets.
        threads: Threads.
    """

    resident_mb: float
    descriptors: int
    sockets: int
    threads: int


def vitals(pid: int) -> Vitals | None:
    """Return what a process holds now, or None where the system does not tell."""
    folder = Path("/proc") / str(pid)
    try:
        fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        descriptors = [entry.name for entry in (folder / "fd").iterdir()]
    except OSError:
        return None
    targets = [_target(folder / "fd" / name) for name in descriptors]
    return Vitals(
        resident_mb=int(fields["VmRSS"].split()[0]) * 1024 / 1e6,
        descriptors=len(descriptors),
        sockets=sum(target.startswith("socket:") for target in targets),
        threads=int(fields["Threads"]),
    )


def folder_mb(folder: Path) -> float:
    """Return the size of all files below a folder, MB; one that vanishes meanwhile counts nothing."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(path) / name).stat().st_size
            except OSError:
                continue
    return total / 1e6


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # closed since it was listed
        return ""
