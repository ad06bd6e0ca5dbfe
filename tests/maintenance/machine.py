"""What a kernel says and no file can be made to say: blocks that cannot be read, and fs-verity; made up here.

The native code asks the kernel itself, so it is left out.  A real kernel is asked in tests/vm.
"""

from __future__ import annotations

import builtins
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from composefs_async import fsverity
from composefs_async._maintenance.fsck import object_reader
from composefs_async._repo import batch, objects
from composefs_async._sys import verity
from composefs_async.digest import Algorithm, ObjectId
from composefs_async.errors import VerityMissingError

_PREAD, _READV, _COPY = os.pread, os.readv, os.copy_file_range
_SOMEWHERE = 1 << 62
"""Where all of a file is read."""


class Machine:
    """Files are told by their inodes: a copy is whole and not protected."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.bad: dict[int, int] = {}
        """Files, and the offset of what cannot be read."""
        self.protected: set[int] = set()
        for module in (object_reader, batch):
            patch.setattr(module, "NATIVE", False)
        patch.setattr(os, "pread", self._pread)
        patch.setattr(os, "readv", self._readv)
        patch.setattr(os, "copy_file_range", self._copy)
        patch.setattr(objects, "open", self._open, raising=False)
        patch.setattr(verity, "enable", self._enable)
        patch.setattr(verity, "measure", self._measure)

    def spoil(self, path: Path, offset: int = 0) -> None:
        """Let nothing of a file be read from *offset* on."""
        self.bad[path.stat().st_ino] = offset

    def _pread(self, fd: int, size: int, offset: int) -> bytes:
        return _PREAD(fd, self._readable(fd, size, offset), offset)

    def _readv(self, fd: int, buffers: Any) -> int:
        self._readable(fd, 0, _SOMEWHERE)
        return _READV(fd, buffers)

    def _copy(self, source: int, target: int, size: int, offset: int, to: int) -> int:
        return _COPY(source, target, self._readable(source, size, offset), offset, to)

    def _open(self, file: int, *arguments: Any, **options: Any) -> Any:
        self._readable(file, 0, _SOMEWHERE)
        return builtins.open(file, *arguments, **options)

    def _readable(self, fd: int, size: int, offset: int) -> int:
        """How much of *size* bytes can be read; nothing is an error."""
        bad = self.bad.get(os.fstat(fd).st_ino)
        if bad is None:
            return size
        if offset >= bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return min(size, bad - offset)

    def _enable(self, fd: int, algorithm: Algorithm, what: str) -> None:
        self.protected.add(os.fstat(fd).st_ino)

    def _measure(self, fd: int, algorithm: Algorithm, what: str) -> ObjectId:
        if os.fstat(fd).st_ino not in self.protected:
            raise VerityMissingError(what)
        return fsverity.digest(_PREAD(fd, os.fstat(fd).st_size, 0), algorithm)
