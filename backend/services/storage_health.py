"""Whether what is stored can be read and written, for ``/health``: looked at often, and never waited for."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from backend.artifacts.files import TEMP_PREFIX
from backend.errors import StorageFailed
from backend.services.audit import Audit
from backend.storage import ArtefactStore

_log = logging.getLogger(__name__)

FRESH_S: Final = 1.0
"""How long it is good for that everything could be written, s."""

PATIENCE_S: Final = 1.0
"""How long an answer waits for a look, s."""


@dataclass(frozen=True, kw_only=True)
class StorageState:
    """What a look has found.

    Attributes:
        failure: Why nothing that is stored can be had; None when it can.
        reasons: What is degraded, a sentence each.
    """

    failure: StorageFailed | None = None
    reasons: Sequence[str] = ()


class StorageHealth:
    """Looks at the models folder and the audit on a thread that nobody has to wait for.

    Whether they are there is seen with each look; whether they can be written is tried once a second.
    """

    def __init__(self, store: ArtefactStore, audit: Audit) -> None:
        self._store, self._audit = store, audit
        self._look: Future[StorageState] | None = None
        self._begun_s = 0.0
        self._tried_s = -FRESH_S
        self._found: Sequence[str] = ()

    async def state(self) -> StorageState:
        """Return what is known by now; a disk that does not answer is a finding, too."""
        if self._look is None or self._look.done():
            try:
                self._begin()
            except RuntimeError:
                return StorageState(reasons=["The machine gives the service no thread to look at its disk with."])
        look = asyncio.wrap_future(self._look)  # type: ignore[arg-type]
        done, _ = await asyncio.wait([look], timeout=PATIENCE_S)
        if done:
            return look.result()
        waited_s = time.monotonic() - self._begun_s
        return StorageState(reasons=[f"The disk of the models folder has not answered for {waited_s:.0f} s."])

    def _begin(self) -> None:
        look: Future[StorageState] = Future()

        def run() -> None:
            look.set_result(self.look())

        # Of its own each time, and a daemon: one that hangs keeps neither later ones nor the end of the process.
        threading.Thread(target=run, name="storage-health", daemon=True).start()
        self._look, self._begun_s = look, time.monotonic()

    def look(self) -> StorageState:
        """Return what is found now; waits for the disk."""
        try:
            self._store.folder.check()
            tries = bool(self._found) or time.monotonic() - self._tried_s >= FRESH_S
            if tries:
                self._tried_s = time.monotonic()
            unwritable = self._unwritable() if tries else None
            found = [each for each in (unwritable, *self._audit.troubles(tries=tries)) if each is not None]
        except StorageFailed as error:
            return StorageState(failure=error)
        except Exception:
            _log.exception("the storage could not be looked at")
            found = ["What is stored could not be looked at; the log has the reason."]
        if found != self._found:
            _log.log(logging.ERROR if found else logging.INFO, "storage: %s", " ".join(found) or "all is well again")
            self._found = found
        return StorageState(reasons=found)

    def _unwritable(self) -> str | None:
        """Return why nothing can be stored, or None; where there is no folder yet, that is for the first write."""
        path = self._store.models_dir / f"{TEMP_PREFIX}health-{secrets.token_hex(8)}"
        if not path.parent.is_dir():
            return None
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                os.write(descriptor, b"x")
            finally:
                os.close(descriptor)
                with suppress(OSError):
                    path.unlink()
        except OSError as error:
            return (
                f"Nothing can be stored in the models folder ({os.strerror(error.errno or 0)}): inspections go "
                "on, fits and uploads are refused."
            )
        return None
