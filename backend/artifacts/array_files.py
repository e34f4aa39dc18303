"""Reading numpy's files in a program of many threads."""

from __future__ import annotations

import io
import logging
from typing import Any

import numpy as np

_log = logging.getLogger(__name__)

_TRIES = 5


def arrays_from_bytes(data: bytes) -> dict[str, Any]:
    """Return the arrays of an ``.npz`` file by name, or the one of an ``.npy`` file by the empty name.

    numpy reads the header of an array as Python source, and where several threads do that at once CPython 3.11 now and
    then fails with a SystemError that says nothing of the file.

    Raises:
        ValueError: If it is no such file.
    """
    for tries in range(1, _TRIES + 1):
        try:
            loaded = np.load(io.BytesIO(data), allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"": loaded}
            with loaded as archive:
                return {name: archive[name] for name in archive.files}
        except SystemError:
            if tries == _TRIES:
                raise
            _log.debug("an array's header could not be parsed; once more", exc_info=True)
    raise AssertionError("unreachable")
