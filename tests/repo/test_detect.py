"""What the objects say about a repository without meta.json."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from composefs_async import Algorithm, Repository
from composefs_async._repo import detect


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_an_error_leaves_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is still held, and with its traceback whatever was at work when it was raised."""
    with Repository.init(tmp_path / "repo", insecure=True) as repo:
        repo.ensure_object(b"x" * 100)
    fd = os.open(tmp_path / "repo", os.O_RDONLY)

    def failing(*_args: object) -> bool:
        raise OSError(errno.EIO, "it cannot be read")

    monkeypatch.setattr(detect, "_is_protected", failing)
    before = _descriptors()
    with pytest.raises(OSError, match="cannot be read") as raised:
        detect.first_unprotected(fd, Algorithm.SHA256)
    assert (_descriptors(), raised.value.errno) == (before, errno.EIO)
    os.close(fd)
