"""What the probe says is what happens."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from composefs_async._sys import files, probe, verity
from composefs_async._sys.probe import Abilities
from composefs_async.digest import Algorithm
from composefs_async.errors import VerityNotSupportedError

TYPES = {
    "path": str,
    "kind": str,
    "writable": bool,
    "tmpfile": bool,
    "verity": bool,
    "reflink": bool,
    "erofs": bool,
    "overlay": bool,
    "overlay_verity": bool,
    "free_bytes": int,
    "free_inodes": int,
    "read_only": bool,
    "proc": bool,
}
NOBODY = 65534


def test_every_ability_has_its_type_and_nothing_is_left(tmp_path: Path) -> None:
    found = probe.probe(str(tmp_path))
    assert {name: type(value) for name, value in dataclasses.asdict(found).items()} == TYPES
    assert (found.path, found.writable, found.read_only) == (str(tmp_path), True, False)
    assert os.listdir(tmp_path) == []


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    probe.probe(str(tmp_path))
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_tmpfile_is_found_where_it_works(tmp_path: Path) -> None:
    try:
        os.close(os.open(tmp_path, os.O_TMPFILE | os.O_RDWR, 0o600))
        works = True
    except OSError:
        works = False
    assert probe.probe(str(tmp_path)).tmpfile is works


def test_verity_is_found_where_it_works(tmp_path: Path) -> None:
    works = []
    for algorithm in Algorithm:
        path = tmp_path / algorithm.value
        path.write_bytes(b"content")
        with files.opened(str(path), os.O_RDONLY) as fd:
            try:
                verity.enable(fd, algorithm, str(path))
                works.append(True)
            except (VerityNotSupportedError, OSError):
                works.append(False)
    assert probe.probe(str(tmp_path)).verity is all(works)


def test_reflink_is_found_where_it_works(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(4096))
    with (tmp_path / "source").open("rb") as source, (tmp_path / "target").open("wb") as target:
        try:
            fcntl.ioctl(target, probe._FICLONE, source.fileno())
            works = True
        except OSError:
            works = False
    assert probe.probe(str(tmp_path)).reflink is works


def test_free_space_is_that_of_statvfs() -> None:
    """Of a file system where nothing happens between the two looks."""
    status = os.statvfs("/proc")
    found = probe.probe("/proc")
    assert (found.free_bytes, found.free_inodes) == (status.f_bavail * status.f_frsize, status.f_favail)


def test_nothing_is_known_where_no_file_can_be_made() -> None:
    found = probe.probe("/proc")
    assert (found.kind, found.writable) == ("proc", False)
    assert (found.tmpfile, found.verity, found.reflink) == (None, None, None)


def test_named_temporary_files_are_tried_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_tmpfile_refused", {tmp_path.stat().st_dev})
    assert probe.probe(str(tmp_path)).writable is True
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("name", "kind"), [("missing", FileNotFoundError), ("file", NotADirectoryError)])
def test_no_directory_is_an_error_that_names_it(name: str, kind: type[OSError], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(kind) as caught:
        probe.probe(str(tmp_path / name))
    assert caught.value.filename == str(tmp_path / name)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody else, which only root can")
def test_missing_permission_makes_a_place_not_writable() -> None:
    program = (
        "import os, json, dataclasses; from composefs_async._sys.probe import probe;"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY});"
        "print(json.dumps(dataclasses.asdict(probe('/usr'))))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found = Abilities(**json.loads(run.stdout))
    assert (found.writable, found.tmpfile, found.verity, found.reflink) == (False, None, None, None)


@pytest.mark.parametrize(
    ("release", "version"),
    [("6.18.44-fc-v669", (6, 18)), ("5.15.0", (5, 15)), ("6.6-rc1", (6, 6)), ("7-custom", (7, 0))],
)
def test_kernel_version_is_read(release: str, version: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    uname = os.uname()
    named = os.uname_result((uname.sysname, uname.nodename, release, uname.version, uname.machine))
    monkeypatch.setattr(os, "uname", lambda: named)
    assert probe._kernel() == version


@pytest.mark.parametrize("name", ["proc", "no-such-file-system"])
def test_file_system_of_the_kernel_is_known(name: str) -> None:
    assert probe._has_filesystem(name) is (name == "proc")
