"""The lossless codings of TIFF, each checked for its length: from packed bytes to those that they stand for."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

_CLEAR, _END, _FIRST = 256, 257, 258


def inflated(data: bytes, n_bytes: int) -> bytes:
    """Return the first bytes of deflated data.

    Raises:
        ValueError, zlib.error: If there are fewer, or their checksum is wrong.
    """
    unpacker = zlib.decompressobj()
    found = unpacker.decompress(data, n_bytes + 1)
    if len(found) < n_bytes or (len(found) == n_bytes and not unpacker.eof):
        raise ValueError("data are missing")
    return found[:n_bytes]


def unpacked_packbits(data: bytes, n_bytes: int) -> bytes:
    """Return the first bytes of runs (TIFF 6.0, section 9); fewer where the data end."""
    found, at = bytearray(), 0
    while len(found) < n_bytes and at + 1 < len(data):
        length = data[at]
        if length < 128:
            found += data[at + 1 : at + 2 + length]
            at += 2 + length
        else:
            found += data[at + 1 : at + 2] * (257 - length if length > 128 else 0)
            at += 2 if length > 128 else 1
    return bytes(found[:n_bytes])


def unpacked_lzw(data: bytes, n_bytes: int) -> bytes:
    """Return the first bytes of an LZW stream (TIFF 6.0, section 13); fewer where the data end.

    Raises:
        ValueError: If it is none.
    """
    # Codes grow with their number since the table was last cleared, so all up to the next clearing can be cut out at
    # once. A word is the one before it in the table and a byte more: the output from where that one was put out.
    packed, n_bits = np.frombuffer(data + bytes(3), np.uint8).astype(np.uint32), 8 * len(data)
    found, n_found, at = [], 0, 0
    while n_found < n_bytes:
        places = at + _CODE_STARTS
        places = places[places + _CODE_BITS <= n_bits]
        bits, byte = _CODE_BITS[: len(places)], places >> 3
        three = (packed[byte] << 16) | (packed[byte + 1] << 8) | packed[byte + 2]
        codes = ((three >> (24 - (places & 7) - bits)) & ((1 << bits) - 1)).astype(np.int64)
        stops = np.flatnonzero((codes == _CLEAR) | (codes == _END))
        n_codes = int(stops[0]) if len(stops) else len(codes)
        if n_codes == len(_CODE_BITS):
            raise ValueError("no LZW stream: its table is full")
        found.append(_words(codes[:n_codes]))
        n_found += len(found[-1])
        if len(stops) == 0 or codes[n_codes] == _END:
            break
        at = int(places[n_codes] + bits[n_codes])
    return b"".join(found)[:n_bytes]


def _words(codes: NDArray[np.int64]) -> bytes:
    """Return what codes [n] stand for that begin with an empty table."""
    number = np.arange(len(codes))
    is_word = codes >= _FIRST
    before = np.where(is_word, codes - _FIRST, number)  # the code that a word was put into the table with
    if (before[is_word] >= number[is_word]).any():
        raise ValueError("no LZW stream: a code that is not in its table yet")
    lengths, nearer = is_word.astype(np.int64), before
    while (nearer != nearer[nearer]).any():
        lengths, nearer = lengths + lengths[nearer], nearer[nearer]
    lengths += 1
    starts = np.cumsum(lengths) - lengths
    code_of = np.repeat(number, lengths)
    place = np.arange(len(code_of))
    source = np.where(is_word[code_of], place - starts[code_of] + starts[before[code_of]], place)
    while (source != (further := source[source])).any():
        source = further
    return codes[code_of[source]].astype(np.uint8).tobytes()


_CODE_BITS = np.array([min((_FIRST + max(n - 1, 0) + 1).bit_length(), 12) for n in range(3841)], dtype=np.int64)
_CODE_STARTS = np.cumsum(_CODE_BITS) - _CODE_BITS


def unpacked_bits(rows: NDArray[np.uint8], n_values: int, bits: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Return the values [rows, n_values] of so many bits each that lie without gaps in rows [rows, n] of bytes.

    They are uint8 up to 8 bits, else uint16. The first bit of a byte is its highest.
    """
    each = np.unpackbits(rows, axis=1, count=n_values * bits).reshape(len(rows), n_values, bits)
    values = np.zeros(each.shape[:2], dtype=np.uint16)
    for bit in range(bits):
        values = (values << np.uint16(1)) | each[:, :, bit]
    return values.astype(np.uint8) if bits <= 8 else values
