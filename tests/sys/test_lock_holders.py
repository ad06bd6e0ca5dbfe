"""Who holds a lock: the process that took it, named as the kernel names it, and not ourselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from composefs_async._sys import lock_holders as module
from composefs_async._sys.lock_holders import lock_holders

HOLD = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(fd, fcntl.LOCK_SH)
print("held", flush=True)
sys.stdin.read()
"""


def test_another_process_is_named(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert lock_holders(fd) == ()
        command = [sys.executable, "-c", HOLD, str(tmp_path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            name = Path(f"/proc/{process.pid}/comm").read_text().strip()
            assert lock_holders(fd) == (f"{name} ({process.pid})",)
            process.communicate()
        assert lock_holders(fd) == ()
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "text",
    [None, "", "nonsense\n", "1: FLOCK  ADVISORY  READ x 08:01:123 0 EOF\n", "1: FLOCK  ADVISORY  READ -1 {} 0 EOF\n"],
    ids=["missing", "empty", "nonsense", "no number", "another namespace"],
)
def test_what_cannot_be_told_is_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    locks, status = tmp_path / "locks", tmp_path.stat()
    if text is not None:
        place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        locks.write_text(text.format(place))
    monkeypatch.setattr(module, "_LOCKS", str(locks))
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert lock_holders(fd) == ()
    finally:
        os.close(fd)
