"""A disk that fails when it is told to: each call of a write to a folder is counted, and one of them refused."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

FAULTS = ("ENOSPC", "EIO", "EACCES", "half a write", "torn rename", "power cut")
_PATHS = ("open", "mkdir", "replace", "rename", "unlink", "rmdir")
_DESCRIPTORS = ("write", "fsync")


class PowerCut(BaseException):
    """The process is gone: nothing that follows reaches the disk either."""


class Disk:
    """The calls on files below a folder, in order, and which of them fails how."""

    def __init__(self, folder: Path, fault: str = "", at: int = -1) -> None:
        self.calls: list[str] = []
        self.struck = False
        self._folder = str(folder)
        self._fault, self._at = fault, at
        self._descriptors: dict[int, str] = {}
        self._is_off = False

    @contextmanager
    def failing(self) -> Iterator[Disk]:
        """Let the calls of the ``with`` block pass through this disk."""
        real = {name: getattr(os, name) for name in (*_PATHS, *_DESCRIPTORS, "close")}
        patches = {name: self._on_path(name, real[name]) for name in _PATHS}
        patches |= {name: self._on_descriptor(name, real[name]) for name in _DESCRIPTORS}
        patches["close"] = self._on_close(real["close"])
        with mock.patch.multiple(os, **patches):
            yield self

    def _on_path(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            shown = os.fspath(path) if not isinstance(path, int) else ""
            # Reading leaves nothing behind; only what writes, and the folders that it makes durable, are counted.
            is_read = name == "open" and not arguments[0] & (os.O_WRONLY | os.O_RDWR) and not Path(shown).is_dir()
            if not str(shown).startswith(self._folder) or is_read:
                return real(path, *arguments, **options)
            target = str(arguments[0]) if name in ("replace", "rename") else str(shown)
            self._step(f"{name} {Path(target).name}", lambda: real(path, *arguments, **options), name)
            done = real(path, *arguments, **options)
            if name == "open":
                self._descriptors[done] = Path(target).name
            return done

        return call

    def _on_descriptor(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(descriptor: int, *arguments: Any) -> Any:
            if descriptor not in self._descriptors:
                return real(descriptor, *arguments)
            if name == "write" and self._is_next() and self._fault == "half a write":
                self._count(f"write {self._descriptors[descriptor]}")
                return real(descriptor, arguments[0][: max(1, len(arguments[0]) // 2)])
            self._step(f"{name} {self._descriptors[descriptor]}", lambda: None, name)
            return real(descriptor, *arguments)

        return call

    def _on_close(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(descriptor: int) -> None:
            self._descriptors.pop(descriptor, None)
            real(descriptor)

        return call

    def _is_next(self) -> bool:
        return len(self.calls) == self._at

    def _count(self, shown: str) -> None:
        self.struck = self.struck or self._is_next()
        self.calls.append(shown)

    def _step(self, shown: str, do: Callable[[], Any], name: str) -> None:
        if self._is_off:
            raise PowerCut
        strikes = self._is_next()
        self._count(shown)
        if not strikes:
            return
        if self._fault == "power cut":
            self._is_off = True
            raise PowerCut
        if self._fault == "torn rename" and name in ("replace", "rename"):
            do()
            raise OSError(errno.EIO, "Input/output error")
        if self._fault in errno.errorcode.values():
            number = getattr(errno, self._fault)
            raise OSError(number, os.strerror(number))


@contextmanager
def unreadable(*folders: Path) -> Iterator[None]:
    """Let nobody, not even the administrator, list these folders in the ``with`` block."""
    refused = {str(folder) for folder in folders}

    def refusing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any = ".") -> Any:
            if not isinstance(path, int) and os.fspath(path) in refused:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
            return real(path)

        return call

    with mock.patch.multiple(os, scandir=refusing(os.scandir), listdir=refusing(os.listdir)):
        yield
