"""Spools: what has arrived of layers from registries, and waits for the next pull to go on.

Owns the place of the files, ``.composefs-async/spool``, and removing those that nobody came back for.  Does not own
what is in them (`composefs_async.registry.spool`).
"""

from __future__ import annotations

import contextlib
import json
import os
import time

from .._repo.state import RepoState
from .._sys import files, locks
from . import state_dir

__all__ = ["DIRECTORY", "expire"]

DIRECTORY = f"{state_dir.DIRECTORY}/spool"
_STATE = ".json"
_LIMIT = 16 << 20
_WITHOUT_STATE = 24 * 3600.0
"""Seconds after the last write that a file is kept that says nothing itself."""


def expire(state: RepoState) -> None:
    """Remove the spools that have expired and are not in use, and what is left of others."""
    try:
        with files.naming(state.path), files.opened(DIRECTORY, os.O_RDONLY | os.O_DIRECTORY, dir_fd=state.fd) as fd:
            names = os.listdir(fd)
            for name in names:
                if name.endswith(_STATE) or name.startswith("."):
                    if name.strip(".").partition(_STATE)[0] not in names:
                        _unlink(fd, name)
                elif _expires(fd, name) <= time.time():
                    _remove(fd, name)
    except (FileNotFoundError, NotADirectoryError):
        return


def _expires(fd: int, name: str) -> float:
    """When a spool expires, in seconds since the epoch."""
    try:
        with files.opened(f"{name}{_STATE}", os.O_RDONLY | os.O_NOFOLLOW, dir_fd=fd) as opened:
            return float(json.loads(os.read(opened, _LIMIT))["expires"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        try:
            return os.stat(name, dir_fd=fd, follow_symlinks=False).st_mtime + _WITHOUT_STATE
        except FileNotFoundError:
            return 0.0


def _remove(fd: int, name: str) -> None:
    """Remove a spool, unless a pull has it open."""
    try:
        with files.opened(name, os.O_RDWR | os.O_NOFOLLOW, dir_fd=fd) as opened:
            if locks.lock(opened, exclusive=True, timeout=0):
                _unlink(fd, f"{name}{_STATE}")
                _unlink(fd, name)
    except OSError:
        return


def _unlink(fd: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
        os.unlink(name, dir_fd=fd)
