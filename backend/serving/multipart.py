"""Requests whose bodies are read as clients write them: file names in any form, byte order marks, preambles."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from backend.errors import TooLarge
from backend.serving.draining import expects_100
from backend.serving.file_names import decoded_words, extended_name, safe_name
from backend.utils import json_noting_repeats

MAX_PREAMBLE_BYTES = 65_536

MAX_TEXT_BYTES = 1_000_000
"""Largest JSON body, and largest form without files: the longest lists that are taken need less."""

MAX_PART_BYTES = 65_536
"""Largest part of a form that is no file."""

_PARSED_BYTES = 8192
"""What is parsed before other requests have their turn."""

BOM = "\ufeff"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class FormRequest(Request):
    """A request that reads forms as ``_Parser`` does, and JSON with the names that come twice in one object.

    Attributes:
        repeated_names: Names that come twice in one object of the JSON body, once it is read.
    """

    repeated_names: tuple[str, ...] = ()

    async def json(self) -> Any:
        """Return the decoded body; a byte order mark is skipped."""
        if not hasattr(self, "_json"):
            body = await self.body_within(MAX_TEXT_BYTES)
            self._json, self.repeated_names = await run_in_threadpool(json_noting_repeats, body)
        return self._json

    async def drop_body(self) -> None:
        """Take in what a client is still sending, unless it waits to be asked: closed under it, it loses the answer."""
        if not expects_100(self.scope):
            with suppress(ClientDisconnect):
                async for _ in self.stream():
                    pass

    async def body_within(self, max_bytes: int) -> bytes:
        """Return the body.

        Raises:
            TooLarge: If it is larger, as soon as that is known; no more of it is held.
        """
        if not hasattr(self, "_body"):
            announced = self.headers.get("Content-Length", "")
            size, held = int(announced) if announced.isdecimal() else 0, bytearray()
            if size <= max_bytes:
                async with aclosing(self.stream()) as stream:
                    async for chunk in stream:
                        size = len(held) + len(chunk)
                        if size > max_bytes:
                            break
                        held += chunk
            if size > max_bytes:
                raise TooLarge(
                    f"The body is larger than {max_bytes / 1e6:g} MB, which is the limit of a call without files.",
                    details={"max_bytes": max_bytes},
                )
            self._body = bytes(held)
        return self._body

    async def _get_form(
        self, *, max_files: float = 1000, max_fields: float = 1000, max_part_size: int = MAX_PART_BYTES
    ) -> FormData:
        if self._form is not None:
            return self._form
        content_type, options = parse_options_header(self.headers.get("Content-Type"))
        limits: dict[str, Any] = {"max_files": max_files, "max_fields": max_fields, "max_part_size": max_part_size}
        if content_type != b"multipart/form-data":
            await self.body_within(MAX_TEXT_BYTES)
            form = await run_in_threadpool(lambda: asyncio.run(super(FormRequest, self)._get_form(**limits)))
        else:
            boundary = options.get(b"boundary", b"")
            try:
                if not boundary:
                    raise MultiPartException("Missing boundary in multipart.")
                async with (
                    aclosing(self.stream()) as stream,
                    aclosing(_from_boundary(_sliced(stream), boundary)) as parts,
                ):
                    form = await _Parser(self.headers, parts, **limits).parse()
            except MultiPartException as error:
                raise HTTPException(400, error.message) from None
        self._form = FormData(
            [(name, value.removeprefix(BOM) if isinstance(value, str) else value) for name, value in form.multi_items()]
        )
        return self._form


class _Parser(MultiPartParser):
    """Starlette's, with decoded file names; refuses a body that breaks off, whose last part would be lost."""

    _ended = False

    def on_headers_finished(self) -> None:
        """Begin a part: a file where it has a file name, in whatever form."""
        disposition = self._current_part.content_disposition or b""
        extended = extended_name(disposition)
        if extended is not None and b"filename" not in parse_options_header(disposition)[1]:
            self._current_part.content_disposition = disposition + b'; filename="file"'
        super().on_headers_finished()
        file = self._current_part.file
        if file is not None:
            file.filename = safe_name(decoded_words(file.filename or "") if extended is None else extended)

    def on_part_end(self) -> None:
        """End a part; text that Windows wrote as UTF-16 is read as such."""
        part = self._current_part
        if part.file is None and part.data[:2] in _UTF_16:
            part.data = bytearray(part.data.decode("utf-16", "replace").encode())
        super().on_part_end()

    def on_end(self) -> None:
        """Note the last boundary."""
        self._ended = True

    async def parse(self) -> FormData:
        """Return the form.

        Raises:
            MultiPartException: If the body is malformed, or ends before its last boundary.
        """
        form = await super().parse()
        if not self._ended:
            for file in self._files_to_close_on_error:
                file.close()
            raise MultiPartException("The multipart form ends before its last boundary")
        return form


async def _sliced(stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Yield a body in small pieces: the parser takes a turn of the event loop for each."""
    async for chunk in stream:
        for start in range(0, len(chunk), _PARSED_BYTES):
            if start:
                await asyncio.sleep(0)
            yield chunk[start : start + _PARSED_BYTES]


async def _from_boundary(stream: AsyncGenerator[bytes, None], boundary: bytes) -> AsyncGenerator[bytes, None]:
    """Yield a body from its first boundary on (RFC 2046, 5.1.1: what stands before is to be ignored)."""
    delimiter, held, found = b"--" + boundary, b"", False
    async for chunk in stream:
        if found:
            yield chunk
            continue
        held += chunk
        at = 0 if held.startswith(delimiter) else held.find(b"\n" + delimiter) + 1
        if at or held.startswith(delimiter):
            found = True
            yield held[at:]
        elif len(held) > MAX_PREAMBLE_BYTES:
            break
    if not found:
        raise MultiPartException("The multipart form does not hold the boundary that its Content-Type names")
