"""Taking locks, waiting for them, and who holds one: the process that took it, as the kernel names it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from composefs_async._sys import files, locks
from composefs_async._sys.locks import lock_holders

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
    listed, status = tmp_path / "locks", tmp_path.stat()
    if text is not None:
        place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        listed.write_text(text.format(place))
    monkeypatch.setattr(locks, "_LOCKS", str(listed))
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert lock_holders(fd) == ()
    finally:
        os.close(fd)


# -- taking ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "both"), [(False, False, True), (False, True, False), (True, False, False), (True, True, False)]
)
def test_only_shared_locks_go_together(first: bool, second: bool, both: bool, tmp_path: Path) -> None:
    with (
        files.opened(str(tmp_path), os.O_RDONLY) as one,
        files.opened(str(tmp_path), os.O_RDONLY) as other,
    ):
        assert locks.lock(one, exclusive=first)
        assert locks.lock(other, exclusive=second, timeout=0) is both


def test_lock_is_free_again_when_its_holder_closes(tmp_path: Path) -> None:
    with files.opened(str(tmp_path), os.O_RDONLY) as other:
        with files.opened(str(tmp_path), os.O_RDONLY) as one:
            assert locks.lock(one, exclusive=True)
            assert not locks.lock(other, exclusive=True, timeout=0)
        assert locks.lock(other, exclusive=True, timeout=0)


def test_own_lock_changes_both_ways(tmp_path: Path) -> None:
    with (
        files.opened(str(tmp_path), os.O_RDONLY) as one,
        files.opened(str(tmp_path), os.O_RDONLY) as other,
    ):
        for exclusive in (False, True, False):
            assert locks.lock(one, exclusive=exclusive, timeout=0)
            assert locks.lock(other, exclusive=False, timeout=0) is not exclusive
            fcntl.flock(other, fcntl.LOCK_UN)


def test_lock_waits_for_its_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder lets go while somebody waits: in this test, as soon as the wait begins."""
    with (
        files.opened(str(tmp_path), os.O_RDONLY) as one,
        files.opened(str(tmp_path), os.O_RDONLY) as other,
    ):
        assert locks.lock(one, exclusive=True)
        waits: list[float] = []

        def wait(seconds: float) -> None:
            waits.append(seconds)
            fcntl.flock(one, fcntl.LOCK_UN)

        monkeypatch.setattr(locks.time, "sleep", wait)
        assert locks.lock(other, exclusive=True)
        assert waits == [locks.LOCK_POLL]


def test_waiting_ends_with_the_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    with (
        files.opened(str(tmp_path), os.O_RDONLY) as one,
        files.opened(str(tmp_path), os.O_RDONLY) as other,
    ):
        assert locks.lock(one, exclusive=True)
        monkeypatch.setattr(locks.time, "sleep", wait)
        monkeypatch.setattr(locks.time, "monotonic", lambda: now)
        assert locks.lock(other, exclusive=True, timeout=1) is False
        assert 101 <= now < 101 + 2 * locks.LOCK_POLL
