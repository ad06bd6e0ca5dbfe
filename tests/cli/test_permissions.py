"""Directories that somebody else owns."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

LAYOUTS = Path(__file__).parent.parent / "vectors" / "layouts"
BASIC_MANIFEST = "sha256:8e66440a93d68590e713aa309c3bc6651670904597e64480b0acccc87cb89f21"

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody else, which only root can")


AS_NOBODY = """
import os, sys
from composefs_async.cli.app import run
# First as root, so that all modules are there: the interpreter's files may be for root alone.
output, scratch = [os.dup(1), os.dup(2)], ["--repo", sys.argv[1]]
for fd in (1, 2):
    os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
for arguments in (["init", "--insecure"], ["oci", "pull", sys.argv[2], "x"], ["oci", "untag", "x"], ["oci", "images"]):
    assert run([*scratch, *arguments]) == 0
for arguments in (["fsck"], ["gc"]):
    assert run([*scratch, *arguments]) == 0
assert run(["doctor"]) == 0
for fd, former in enumerate(output, 1):
    os.dup2(former, fd)
os.environ["HOME"] = "/nonexistent"
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sys.exit(run(sys.argv[3:]))
"""


@pytest.fixture
def nobody(tmp_path: Path, cli: Any) -> Callable[..., Any]:
    """Runs a command as a user without any rights."""
    kind = type(cli("--version"))

    def call(*arguments: object) -> Any:
        command = [sys.executable, "-c", AS_NOBODY, tmp_path / "scratch", f"oci:{LAYOUTS}/one", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
        return kind(done.returncode, done.stdout, done.stderr.decode())

    return call


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that anybody can look into."""
    path = Path(tempfile.mkdtemp(prefix="composefs-async-public-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@only_root
@pytest.mark.parametrize("command", [["oci", "pull", "LAYOUT"], ["oci", "untag", "basic"], ["oci", "tag", "M", "new"]])
def test_repository_of_somebody_else_is_read_but_not_written(
    command: list[str], public: Path, repo: Path, nobody: Callable[..., Any]
) -> None:
    theirs = Path(shutil.copytree(repo, public / "repo", symlinks=True))
    shutil.copytree(LAYOUTS / "plain_zstd", public / "layout")
    subprocess.run(["chmod", "-R", "a+rX", public], check=True)
    replaced = {"LAYOUT": f"oci:{public}/layout", "M": BASIC_MANIFEST}
    before = sorted(theirs.rglob("*"))
    found = nobody("--repo", theirs, *(replaced.get(word, word) for word in command))
    found.failed(7, f"{theirs} is read-only: permission denied")
    assert sorted(theirs.rglob("*")) == before


@only_root
def test_repository_that_must_not_be_seen_is_named(public: Path, repo: Path, nobody: Callable[..., Any]) -> None:
    hidden = Path(shutil.copytree(repo, public / "repo", symlinks=True))
    hidden.chmod(0o700)
    for command in (["--repo", hidden, "oci", "images"], ["doctor", hidden]):
        assert str(hidden) in nobody(*command).failed(11, "Permission denied").err
    nobody("--repo", public / "new", "init", "--insecure").failed(11, "Permission denied", str(public))
    for command in ("fsck", "gc"):
        nobody("--repo", hidden, command).failed(11, "Permission denied")


@only_root
def test_doctor_says_what_it_could_not_try(public: Path, nobody: Callable[..., Any]) -> None:
    found = nobody("doctor", public, "--json").good().json["filesystem"]
    assert (found["writable"], found["tmpfile"], found["verity"], found["reflink"]) == (False, None, None, None)
    lines = nobody("doctor", public).good().text.splitlines()
    words = {line[6:24].strip(): line[2:5].strip() for line in lines[1:5]}
    assert words == {"writable": "no", "O_TMPFILE": "?", "fs-verity": "?", "reflink": "?"}
