"""What can work where /proc is not mounted, as in the chroots of installers, works there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("may_mount")

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def without_proc() -> Command:
    """Runs the program in a mount namespace of its own without /proc."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("unshare is not on PATH")

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        script = 'umount -l /proc && exec "$0" -W error -m composefs_async "$@"'
        command = [unshare, "-m", "sh", "-c", script, sys.executable, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    return call


def test_directory_with_links_and_attributes_makes_the_same_image(
    tmp_path: Path, empty: Path, without_proc: Command
) -> None:
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    (source / "below" / "large").write_bytes(bytes(10_000))
    (source / "link").symlink_to("below")
    os.mkfifo(source / "below" / "fifo")
    for name in ("link", "below/fifo", "below/large"):
        os.setxattr(source / name, "trusted.name", name.encode(), follow_symlinks=False)
    wanted = subprocess.run(
        [sys.executable, "-m", "composefs_async", "mkcomposefs", "--print-digest-only", source],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = without_proc("mkcomposefs", "--print-digest-only", source)
    assert (found.returncode, found.stdout, found.stderr) == (0, wanted, "")
    stored = without_proc("--repo", empty, "create-image", source, "name")
    assert (stored.returncode, stored.stderr) == (0, "")
    for command in (["fsck"], ["gc"], ["refs", "list"], ["image-objects", "refs/name"]):
        done = without_proc("--repo", empty, *command)
        assert (done.returncode, done.stderr) == (0, "")


def test_repository_is_made(tmp_path: Path, without_proc: Command) -> None:
    assert without_proc("--repo", tmp_path / "repo", "init", "--insecure").returncode == 0


def test_doctor_tells(tmp_path: Path, without_proc: Command) -> None:
    done = without_proc("doctor", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "  no  /proc             /proc is not mounted: " in done.stdout
    assert '"proc": false' in without_proc("doctor", "--json", tmp_path).stdout
