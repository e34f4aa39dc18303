"""Giving a file a second name: what is kept of it costs no space and no time where the file system can do it."""

from __future__ import annotations

import logging
import os
import secrets
from contextlib import suppress
from pathlib import Path

from backend.artifacts.files import TEMP_PREFIX, make_folder, replace, sync_folder

_log = logging.getLogger(__name__)


def give_second_name(path: Path, name: Path) -> bool:
    """Give a file that nobody changes in place another name, too, without a copy; return whether it could be done.

    Raises:
        StorageFull, StorageFailed: If the folder of the name cannot be made.
    """
    make_folder(name.parent)
    temp = name.parent / f"{TEMP_PREFIX}{secrets.token_hex(8)}"
    try:
        os.link(path, temp)
        replace(temp, name)
        sync_folder(name.parent)
    except OSError as error:  # a file system without hard links, as many are
        _log.debug("%s cannot be linked: %s", path.name, error)
        return False
    finally:
        with suppress(OSError):
            temp.unlink(missing_ok=True)
    return True
