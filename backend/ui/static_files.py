"""The files of the page: style, scripts and the libraries beside them, addressed by their digests."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "static"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
_DIGEST_CHARS = 16


@dataclass(frozen=True)
class StaticFile:
    """One file: its address below ``/ui/static/``, its bytes and what they are."""

    address: str
    content: bytes
    media_type: str


@cache
def static_files() -> dict[str, StaticFile]:
    """Return the files by name, such as ``lib/uplot-1.6.32.min.js``; read once."""
    files = {}
    for path in sorted(FOLDER.rglob("*")):
        if path.suffix in MEDIA_TYPES:
            name, content = path.relative_to(FOLDER).as_posix(), path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()[:_DIGEST_CHARS]
            files[name] = StaticFile(f"{digest}/{name}", content, MEDIA_TYPES[path.suffix])
    return files


@cache
def by_address() -> dict[str, StaticFile]:
    """Return the files by their addresses."""
    return {file.address: file for file in static_files().values()}
