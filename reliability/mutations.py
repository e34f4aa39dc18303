"""Requests as no client should send them: mutations of captured ones, byte by byte and rule by rule."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CAPTURED = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "dotnet"
"""Requests of .NET's HttpClient, byte for byte as it sent them."""

_END_OF_HEAD = b"\r\n\r\n"
_NASTY_BYTES = (b"\0", b"\xff", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b'"', b"%00", b"--", b"\xc0\xaf", b"\xed\xa0\x80")
_NASTY_VALUES = (
    b"", b"-1", b"0", b"1e999", b"NaN", b"9" * 400, b"true", b"null", b"../../../etc/passwd", b"..\\..\\x", b"a\0b",
    b"\xff\xfe", b"A" * 70_000, b"{}", b"[" * 5_000, b"%s%n", "ﷺ".encode() * 40, b"last", b"CON",
)  # fmt: skip
_NASTY_HEADERS = (
    b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: 99999999999999999999", b"Content-Length: 1e3",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: \x0bchunked",
    b"Content-Encoding: gzip", b"Content-Type: application/json", b"Content-Type: text/xml", b"Content-Type:",
    b"Content-Type: multipart/form-data", b'Content-Type: multipart/form-data; boundary=""',
    b"Content-Type: multipart/form-data; boundary=" + b"b" * 300, b"Content-Type: application/x-www-form-urlencoded",
    b"Expect: 100-continue", b"Expect: the-unexpected", b"Connection: close", b"Connection: upgrade\r\nUpgrade: h2c",
    b"Upgrade: websocket\r\nConnection: Upgrade", b"Host: a\r\nHost: b", b"Host:", b"X-Recipe-Id: last",
    b"X-Recipe-Id: ../../x", b"X-Request-Id: " + b"r" * 300, b"X-Request-Id: \xff\xfe", b"Prefer: respond-async",
    b"Range: bytes=0-1", b"Cookie: " + b"c" * 60_000, b"X: " + b"h" * 100_000, b" folded: yes", b"No-Colon",
    b"Accept-Encoding: br;q=nan", b"X-HTTP-Method-Override: DELETE", b"Origin: null", b"Authorization: Basic !!!",
)  # fmt: skip
_METHODS = (
    b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"HEAD", b"OPTIONS", b"TRACE", b"CONNECT", b"PRI", b"get", b"\0", b""
)  # fmt: skip
_PATHS = (
    b"/fit_ok", b"/infer", b"/calibrate_ng", b"/health", b"/metrics", b"/recipes", b"/recipes/copy", b"/openapi.json",
    b"/docs", b"/state?role_id=a&roi_id=b", b"/manifest?role_id=%00&roi_id=%ff", b"/datasets/list?role_id=a&roi_id=b",
    b"/datasets/file?role_id=a&roi_id=b&label=ok&filename=..%2f..%2fx", b"/datasets/ok/upload", b"/jobs/../../x",
    b"/jobs/%2e%2e%2f", b"//infer", b"/infer/", b"/%69nfer", b"/infer?" + b"a=b&" * 5_000, b"*", b"http://other/infer",
    b"/" + b"p" * 70_000, b"/\xff", b"/state?role_id=" + b"a" * 5_000, b"/calibrate_dataset", b"/infer_dataset",
    b"/refit", b"/versions?role_id=a&roi_id=b", b"/versions/activate", b"/versions/compare",
)  # fmt: skip
_VERSIONS = (b"HTTP/1.0", b"HTTP/1.1", b"HTTP/2.0", b"HTTP/9.9", b"HTTP/", b"ICY", b"")


@dataclass(frozen=True, kw_only=True)
class Sent:
    """Bytes for one connection.

    Attributes:
        pieces: Sent one after the other, each in a packet of its own.
        rules: The mutations, in order.
    """

    pieces: Sequence[bytes]
    rules: Sequence[str]

    @property
    def data(self) -> bytes:
        """All bytes."""
        return b"".join(self.pieces)


def captured_requests() -> dict[str, bytes]:
    """Return the captured requests by name."""
    return {path.stem: path.read_bytes() for path in sorted(CAPTURED.glob("*.http"))}


def mutated(requests: Sequence[bytes], rng: random.Random) -> Sent:
    """Return one of some requests after one to four mutations, in one to a few pieces."""
    data, rules = rng.choice(requests), []
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        name = rng.choice([*_RULES])
        data = _RULES[name](data, rng)
        rules.append(name)
    if rng.random() < 0.15:
        data += rng.choice(requests)
        rules.append("pipeline")
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((0, 0, 0, 0, 1, 3))))
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return Sent(pieces=[piece for piece in pieces if piece], rules=rules)


def _halves(data: bytes) -> tuple[bytes, bytes]:
    head, _, body = data.partition(_END_OF_HEAD)
    return head, body


def _with_length(head: bytes, body: bytes) -> bytes:
    """Return a request whose length is true, so that what was done to the body gets past the first door."""
    return re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(body), head) + _END_OF_HEAD + body


def _flip_bits(data: bytes, rng: random.Random) -> bytes:
    flipped = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        flipped[rng.randrange(min(len(flipped), rng.choice((200, 1200, len(flipped)))))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def _flip_body(data: bytes, rng: random.Random) -> bytes:
    head, body = _halves(data)
    return _with_length(head, _flip_bits(body, rng)) if body else _flip_bits(data, rng)


def _insert(data: bytes, rng: random.Random) -> bytes:
    where = rng.randrange(len(data) + 1)
    return data[:where] + rng.choice(_NASTY_BYTES) + data[where:]


def _insert_into_body(data: bytes, rng: random.Random) -> bytes:
    head, body = _halves(data)
    return _with_length(head, _insert(body, rng))


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(1, len(data) + 1)]


def _cut_body(data: bytes, rng: random.Random) -> bytes:
    head, body = _halves(data)
    start = rng.randrange(len(body) + 1)
    return _with_length(head, body[:start] + body[start + rng.choice((1, 10, 100, len(body))) :])


def _repeat(data: bytes, rng: random.Random) -> bytes:
    head, body = _halves(data)
    start = rng.randrange(len(body) + 1)
    piece = body[start : start + rng.choice((1, 20, 500, 5_000))]
    return _with_length(head, body[:start] + piece * rng.choice((2, 3, 50)) + body[start:])


def _shuffle_parts(data: bytes, rng: random.Random) -> bytes:
    """Drop, double and reorder the parts of a form."""
    head, body = _halves(data)
    boundary = body.split(b"\r\n", 1)[0]
    if not boundary.startswith(b"--"):
        return _repeat(data, rng)
    parts = body.split(boundary)[1:-1]
    chosen = [rng.choice(parts) for _ in range(rng.randrange(2 * len(parts) + 1))] if parts else []
    return _with_length(head, b"".join(boundary + part for part in chosen) + boundary + b"--\r\n")


def _change_value(data: bytes, rng: random.Random) -> bytes:
    """Put something else in the place of a form field's or a JSON value."""
    head, body = _halves(data)
    values = [
        *re.finditer(rb"(?<=\r\n\r\n)[^\r\n]{1,80}(?=\r\n--)|(?<=:)\s*(\"[^\"]*\"|[\d.eE+-]+|null|\[[^\]]*\])", body)
    ]
    if not values:
        return _repeat(data, rng)
    value = rng.choice(values)
    return _with_length(head, body[: value.start()] + rng.choice(_NASTY_VALUES) + body[value.end() :])


def _rename_field(data: bytes, rng: random.Random) -> bytes:
    head, body = _halves(data)
    names = [*re.finditer(rb"name=\"?[\w-]+\"?|filename\*?=[^\r\n;]+|Content-[\w-]+: [^\r\n]+", body)]
    if not names:
        return _insert_into_body(data, rng)
    name = rng.choice(names)
    other = rng.choice((b"name=images", b"name=", b'name="a\\"b"', b"filename*=utf-16''%ff", b"X: y", b'filename=""'))
    return _with_length(head, body[: name.start()] + other + body[name.end() :])


def _change_boundary(data: bytes, rng: random.Random) -> bytes:
    head, body = _halves(data)
    other = rng.choice(
        (b'boundary="', b"boundary=", b"boundary=x", b'boundary="\r\n', b"charset=utf-16", b"boundary=--")
    )
    return re.sub(rb'boundary="[^"]*"', lambda _: other, head) + _END_OF_HEAD + body


def _lie_about_length(data: bytes, rng: random.Random) -> bytes:
    head, body = _halves(data)
    lie = rng.choice((0, 1, len(body) - 1, len(body) + 1, len(body) // 2, 2 * len(body), 2**31, 2**63, 10**25))
    return re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % max(lie, 0), head) + _END_OF_HEAD + body


def _chunk(data: bytes, rng: random.Random) -> bytes:
    """Send the body in chunks, some of them ill-formed."""
    head, body = _halves(data)
    size = rng.choice((1, 7, 1000, 100_000)) if len(body) < 5_000 else rng.choice((1000, 100_000))
    chunks = [b"%x\r\n%s\r\n" % (len(body[at : at + size]), body[at : at + size]) for at in range(0, len(body), size)]
    if chunks and rng.random() < 0.6:
        broken = (
            b"zz\r\n",
            b"-5\r\nabc\r\n",
            b"ffffffffffffffffff\r\n",
            b"5;" + b"e" * 5_000 + b"\r\nabcde\r\n",
            b"3\r\nab",
        )
        chunks[rng.randrange(len(chunks))] = rng.choice(broken)
    end = rng.choice((b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\nTrailer: x\r\n\r\n", b"", b"0\r\n"))
    head = re.sub(rb"Content-Length: \d+", b"Transfer-Encoding: chunked", head)
    return head + _END_OF_HEAD + b"".join(chunks) + end


def _add_header(data: bytes, rng: random.Random) -> bytes:
    head, body = _halves(data)
    lines = head.split(b"\r\n")
    for _ in range(rng.choice((1, 1, 2, 200))):
        lines.insert(
            rng.randrange(1, len(lines) + 1), rng.choice(_NASTY_HEADERS[:-1] if len(lines) > 9 else _NASTY_HEADERS)
        )
        if len(lines) > 300 or sum(map(len, lines)) > 500_000:
            break
    return b"\r\n".join(lines) + _END_OF_HEAD + body


def _drop_header(data: bytes, rng: random.Random) -> bytes:
    head, body = _halves(data)
    lines = head.split(b"\r\n")
    if len(lines) > 1:
        del lines[rng.randrange(1, len(lines))]
    return b"\r\n".join(lines) + _END_OF_HEAD + body


def _change_start(data: bytes, rng: random.Random) -> bytes:
    """Change the request line, in one of its three words."""
    line, _, rest = data.partition(b"\r\n")
    words = [*line.split(b" "), b"", b"", b""][:3]
    which = rng.randrange(3)
    words[which] = rng.choice((_METHODS, _PATHS, _VERSIONS)[which])
    return b" ".join(words) + b"\r\n" + rest


def _use_bare_newlines(data: bytes, rng: random.Random) -> bytes:
    head, body = _halves(data)
    return head.replace(b"\r\n", rng.choice((b"\n", b"\r", b"\r\r\n"))) + _END_OF_HEAD + body


_RULES: Mapping[str, Callable[[bytes, random.Random], bytes]] = {
    "flip bits": _flip_bits,
    "flip bits of the body": _flip_body,
    "insert": _insert,
    "insert into the body": _insert_into_body,
    "cut": _cut,
    "cut from the body": _cut_body,
    "repeat": _repeat,
    "shuffle parts": _shuffle_parts,
    "change a value": _change_value,
    "rename a field": _rename_field,
    "change the boundary": _change_boundary,
    "lie about the length": _lie_about_length,
    "chunk": _chunk,
    "add headers": _add_header,
    "drop a header": _drop_header,
    "change the request line": _change_start,
    "bare newlines": _use_bare_newlines,
}
