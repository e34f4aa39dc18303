"""File names of uploads as clients write them: plain, percent-encoded (RFC 5987) or as encoded words (RFC 2047)."""

from __future__ import annotations

import codecs
import re
import unicodedata
from email.errors import HeaderParseError
from email.header import decode_header
from email.utils import decode_params, unquote

MAX_NAME_CHARS = 255
"""What file systems take; of a longer name the end is kept, which has the suffix."""

_PARAMETER = re.compile(r';\s*([^\s=;"]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)')
# Others that Python knows are no text, or take long to decode.
_CHARSETS = re.compile(r"utf-8|ascii|iso8859-\d+|cp125\d|cp932|gb\w+|big5|shift_jis|euc_\w+|koi8-\w")


def extended_name(disposition: bytes) -> str | None:
    """Return what ``filename*`` of a Content-Disposition says, in one piece or several (RFC 2231); None without one."""
    starred = [
        (name.lower(), value.strip())
        for name, value in _PARAMETER.findall(disposition.decode("latin-1"))
        if name.lower().startswith("filename*")
    ]
    if not starred:
        return None
    try:
        found = decode_params([("", ""), *starred])[1:]
    except (ValueError, TypeError):
        return None  # pieces whose numbers are no sequence
    for _, value in found:
        if isinstance(value, tuple):
            charset, _, text = value
            return _decoded(unquote(text).encode("latin-1", "replace"), charset or "utf-8")
        return unquote(value)
    return None


def decoded_words(name: str) -> str:
    """Return a name whose encoded words are decoded; one that has none, or a broken one, as it is."""
    if "=?" not in name:
        return name
    try:
        pieces = decode_header(name)
    except (HeaderParseError, ValueError):
        return name
    return "".join(
        piece if isinstance(piece, str) else _decoded(piece, charset or "raw_unicode_escape")
        for piece, charset in pieces
    )


def safe_name(name: str) -> str:
    """Return a file's name without folders, control characters and lone surrogates, of at most ``MAX_NAME_CHARS``."""
    base = re.split(r"[/\\]", name)[-1]
    shown = "".join("_" if unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp") else each for each in base)
    return "" if shown.strip(". ") == "" else shown[-MAX_NAME_CHARS:]


def _decoded(data: bytes, charset: str) -> str:
    if charset == "raw_unicode_escape":
        return data.decode(charset, "replace")
    try:
        known = codecs.lookup(charset).name
    except (LookupError, ValueError):
        known = ""
    return data.decode(known if _CHARSETS.fullmatch(known) else "utf-8", "replace")
