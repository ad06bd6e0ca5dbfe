"""^C while a thread waits for something that never comes: the second one ends the process."""

from __future__ import annotations

import array
import fcntl
import os
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from composefs_async.repository import Repository

NOTHING = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def unread(fd: int) -> int:
    """Bytes in a pipe."""
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


BLOCKED = """
import os, sys
from types import SimpleNamespace
from composefs_async._aio.hops import hop
from composefs_async.cli.context import Settings
from composefs_async.cli.interrupts import second_ends_all

def read():
    os.read(0, 1000)
    os.read(0, 1)

async def work():
    await hop(read)

with second_ends_all():
    try:
        Settings.run(SimpleNamespace(loop=sys.argv[1]), work)
    except BaseException as error:
        print(type(error).__name__)
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_a_second_interrupt_ends_a_read_that_never_ends(loop: str) -> None:
    pytest.importorskip(loop)
    reader, writer = os.pipe()
    with subprocess.Popen([sys.executable, "-c", BLOCKED, loop], stdin=reader) as process:
        os.write(writer, b"x" * 1000)
        while unread(reader) and process.poll() is None:
            os.sched_yield()
        sent = 0
        while process.poll() is None and sent < 20:
            process.send_signal(signal.SIGINT)
            sent += 1
            try:
                process.wait(1)
            except subprocess.TimeoutExpired:
                continue
        process.kill()
    os.close(reader)
    os.close(writer)
    assert process.returncode == -signal.SIGINT
    assert sent == 2


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_the_first_interrupt_ends_an_import_in_order(loop: str, tmp_path: Path) -> None:
    pytest.importorskip(loop)
    Repository.init(tmp_path / "repo", insecure=True).close()
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "composefs_async", "--repo", str(tmp_path / "repo"), "--loop", loop]
    with subprocess.Popen(
        [*command, "oci", "import-layer", NOTHING], stdin=reader, stderr=subprocess.PIPE, text=True
    ) as process:
        os.write(writer, b"x" * 1000)
        while unread(reader) and process.poll() is None:
            os.sched_yield()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr is not None
        assert process.stderr.read().strip().endswith("interrupted")
    os.close(reader)
    os.close(writer)
    with Repository.open_path(tmp_path / "repo") as repo:
        assert repo.fsck().ok
