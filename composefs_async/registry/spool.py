"""Files that blobs arrive in: buffer, state for the next try, and target of ranges that come in any order, in one.

Owns the files and what they promise.  A spool that another process was killed over is used again: its bytes are read
and hashed like any others, so that nothing but time depends on what it says.  Nothing is flushed: after a crash of the
machine, which the boot's id tells, a spool is empty.  Everything here blocks.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._sys import files, locks
from .ranges import RangeSet

__all__ = ["LIFETIME", "Spool"]

LIFETIME = 24 * 3600.0
"""Seconds after its last use that a spool is kept."""
_VERSION = 1
_STATE_LIMIT = 16 << 20
_STATE = ".json"
_IN_MEMORY = 8 << 20
"""Bytes of a blob that stay in memory until it is through; of larger ones only what has not been read."""


class Spool:
    """The file of one blob.  Made by `open` or `anonymous`; `close` keeps what has come, `drop` does not."""

    def __init__(self, fd: int, path: Path | None, size: int, reference: str, digest: str) -> None:
        self.fd: int = fd
        self._path = path
        self._size, self._reference, self._digest = size, reference, digest
        self.present: RangeSet = RangeSet()
        """What has been written; changed on the event loop alone."""
        self.resumed: int = 0
        """Bytes that an earlier process left."""
        self.forgets: bool = False
        """It is in memory and too large to stay there: what has been read is given back."""

    @property
    def path(self) -> str:
        """For messages."""
        return str(self._path) if self._path is not None else f"blob {self._digest}"

    @property
    def lasting(self) -> bool:
        """Another process can go on with it."""
        return self._path is not None

    @classmethod
    def anonymous(cls, digest: str, size: int, directory: Path | None = None) -> Spool:
        """A file without a name: in memory, or in *directory*."""
        if directory is None:
            fd = os.memfd_create("composefs-async-blob", os.MFD_CLOEXEC)
            spool = cls(fd, None, size, "", digest)
            spool.forgets = size > _IN_MEMORY
            return spool
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        return cls(fd, None, size, "", digest)

    @classmethod
    def open(cls, directory: Path, digest: str, size: int, reference: str) -> Spool | None:
        """The spool of that blob, with what an earlier process has left; None if another process has it open.

        Raises:
            OSError
        """
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = directory / digest.replace(":", "-")
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                if not locks.lock(fd, exclusive=True, timeout=0):
                    os.close(fd)
                    return None
                try:
                    if os.path.samestat(os.fstat(fd), os.stat(path)):
                        break
                except FileNotFoundError:  # whoever had it was done with it
                    pass
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
        spool = cls(fd, path, size, reference, digest)
        spool._load()
        return spool

    @staticmethod
    def moved_at(directory: Path, digest: str) -> float:
        """When the state of a blob's spool was written last, in seconds since the epoch; 0 if never."""
        try:
            return os.stat(directory / f"{digest.replace(':', '-')}{_STATE}").st_mtime
        except OSError:
            return 0.0

    def write(self, offset: int, pieces: Sequence[bytes]) -> None:
        """Write at *offset*; the caller adds it to `present` afterwards.

        Raises:
            OSError: with the file's name, and how much is missing if the disk is full.
        """
        try:
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    written = os.pwrite(self.fd, view, offset)
                    offset += written
                    view = view[written:]
        except OSError as error:
            error.filename = f"{self.path} ({self._size - self.present.total} bytes are missing)"
            raise

    def forget(self, offset: int) -> None:
        """Give back what is before *offset*, if it is in memory."""
        files.punch_hole(self.fd, offset)

    def save(self, present: Sequence[tuple[int, int]]) -> None:
        """Let the next process find what has been written; a disk that refuses keeps what was noted before."""
        if self._path is None:
            return
        state = {
            "version": _VERSION,
            "digest": self._digest,
            "size": self._size,
            "reference": self._reference,
            "boot": _boot_id(),
            "expires": time.time() + LIFETIME,
            "present": [list(each) for each in present],
        }
        path = self._state_path()
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(json.dumps(state))
            os.replace(temporary, path)
        except OSError:  # the disk is full, say, which whoever writes the blob will hear, too
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def empty(self) -> None:
        """Forget everything that has come."""
        if self._path is not None:
            self._state_path().unlink(missing_ok=True)
        os.ftruncate(self.fd, 0)
        self.present = RangeSet()
        self.resumed = 0

    def close(self) -> None:
        """Close the file and leave it for the next process, if something is in it."""
        if self._path is not None:
            if self.present.total:
                self.save(self.present.as_list())
            else:
                self._remove()
        os.close(self.fd)

    def drop(self) -> None:
        """Close and remove the file."""
        if self._path is not None:
            self._remove()
        os.close(self.fd)

    def _remove(self) -> None:
        assert self._path is not None
        self._state_path().unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)

    def _state_path(self) -> Path:
        assert self._path is not None
        return self._path.with_name(f"{self._path.name}{_STATE}")

    def _load(self) -> None:
        length = os.fstat(self.fd).st_size
        state = _read_state(self._state_path())
        present = _usable(state, self._digest, self._size, length)
        if present is None:
            self.empty()
            return
        self.present = RangeSet(present)
        self.resumed = self.present.total


def _read_state(path: Path) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as file:
            content = file.read(_STATE_LIMIT + 1)
        state = json.loads(content) if len(content) <= _STATE_LIMIT else None
    except (OSError, ValueError, RecursionError):
        return None
    return state if isinstance(state, dict) else None


def _usable(state: dict[str, Any] | None, digest: str, size: int, length: int) -> list[tuple[int, int]] | None:
    """The ranges of a state that can be believed; None if it cannot."""
    try:
        if state is None or state["version"] != _VERSION or state["digest"] != digest or state["size"] != size:
            return None
        if state["boot"] != _boot_id() or not time.time() < float(state["expires"]):
            return None
        present = [(int(start), int(end)) for start, end in state["present"]]
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    fits = all(0 <= start < end <= min(size, length) for start, end in present)
    return present if fits else None


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
