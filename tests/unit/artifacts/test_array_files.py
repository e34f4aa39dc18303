"""numpy's files among many threads."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from backend.artifacts import array_files
from backend.artifacts.array_files import arrays_from_bytes

ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)


def _files() -> tuple[bytes, bytes]:
    one, several = io.BytesIO(), io.BytesIO()
    np.save(one, ROWS)
    np.savez(several, rows=ROWS, more=ROWS + 1)
    return one.getvalue(), several.getvalue()


def test_arrays_are_read_by_name() -> None:
    one, several = _files()
    assert np.array_equal(arrays_from_bytes(one)[""], ROWS)
    found = arrays_from_bytes(several)
    assert sorted(found) == ["more", "rows"]
    assert np.array_equal(found["more"], ROWS + 1)


@pytest.mark.parametrize("failures", [1, 2, 99])
def test_a_failure_of_python_s_parser_among_threads_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    load, left = np.load, [failures]

    def failing(*arguments: Any, **options: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise SystemError("AST constructor recursion depth mismatch (before=57, after=68)")
        return load(*arguments, **options)

    monkeypatch.setattr(array_files.np, "load", failing)
    if failures < 99:
        assert np.array_equal(arrays_from_bytes(_files()[0])[""], ROWS)
    else:
        with pytest.raises(SystemError):
            arrays_from_bytes(_files()[0])


@pytest.mark.parametrize("data", [b"nothing", b"", b"PK"])
def test_what_is_no_such_file_is_refused(data: bytes) -> None:
    with pytest.raises((ValueError, EOFError, OSError)):
        arrays_from_bytes(data)
