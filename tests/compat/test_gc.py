"""gc beside cfsctl's: the same counters, the same files left, and each finds the other's work sound."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anyio
import pytest

from composefs_async._maintenance import leases
from composefs_async._zstd import zstd
from composefs_async.errors import RepositoryInUseError
from composefs_async.oci import Platform, pull
from composefs_async.repository import Repository, state_of

from .conftest import Cfsctl

VECTORS = Path(__file__).parent.parent / "vectors"
FLAVOURS = ["g4-sha512-v1", "g4-sha256-v2", "g3-sha256", "g3-sha512"]


def unpack(flavour: str, path: Path) -> Path:
    packed = (VECTORS / "repository" / f"{flavour}.tar.zst").read_bytes()
    path.mkdir()
    subprocess.run(["tar", "-x", "-C", path], input=zstd.decompress(packed), check=True)
    return path


def tree(path: Path) -> dict[str, str]:
    """Everything but what only upkeep knows, with the targets of links."""
    found = {}
    for entry in path.rglob("*"):
        name = str(entry.relative_to(path))
        if not name.startswith(".composefs-async"):
            found[name] = os.readlink(entry) if entry.is_symlink() else ""
    return found


def counters(printed: bytes) -> tuple[int, int, int, int]:
    removed, size, images, streams = 0, 0, 0, 0
    text = printed.decode()
    if match := re.search(r"Objects: (\d+) removed \((\d+) bytes\)", text):
        removed, size = int(match[1]), int(match[2])
    if match := re.search(r"Pruned symlinks: (\d+) images, (\d+) streams", text):
        images, streams = int(match[1]), int(match[2])
    return removed, size, images, streams


def untag(path: Path, keep: Callable[[int], bool]) -> None:
    for number, name in enumerate(sorted(os.listdir(path / "streams/refs/oci"))):
        if not keep(number):
            os.unlink(path / "streams/refs/oci" / name)


def lose_a_dead_object(path: Path) -> None:
    """What only the garbage has: the first stream that no tag leads to any more."""
    untag(path, lambda number: number > 0)
    with Repository.open_path(path) as repo:
        name = repo.gc(dry_run=True).pruned[0]
    os.unlink(path / os.path.dirname(name) / os.readlink(path / name))


CHANGES: dict[str, Callable[[Path], None]] = {
    "nothing": lambda path: None,
    "one untagged": partial(untag, keep=lambda number: number != 1),
    "half untagged": partial(untag, keep=lambda number: number % 2 == 0),
    "all untagged": partial(untag, keep=lambda number: False),
    "garbage that lacks an object": lose_a_dead_object,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_counters_and_what_is_left_are_the_same(
    cfsctl: Callable[..., Cfsctl], tmp_path: Path, flavour: str, change: str
) -> None:
    ours = unpack(flavour, tmp_path / "ours")
    theirs = cfsctl(tmp_path / "theirs", "cfsctl" if flavour.startswith("g4") else "cfsctl-2026-04")
    CHANGES[change](ours)
    shutil.copytree(ours, theirs.repository, symlinks=True)
    with Repository.open_path(ours) as repo:
        expected = repo.gc(dry_run=True)
        result = repo.gc()
    assert expected == result
    assert (result.objects_missing, result.notes, result.leftovers) == (0, (), ())
    found = (result.objects_removed, result.objects_bytes, result.images_pruned, result.streams_pruned)
    assert found == counters(theirs("gc"))
    assert tree(ours) == tree(theirs.repository)
    cfsctl(ours, theirs.program.name).assert_sound()
    assert counters(cfsctl(ours, theirs.program.name)("gc")) == (0, 0, 0, 0)


def test_the_texts_are_the_same(cfsctl: Callable[..., Cfsctl], tmp_path: Path) -> None:
    ours = unpack("g4-sha512-v1", tmp_path / "ours")
    untag(ours, lambda number: number % 2 == 0)
    theirs = cfsctl(tmp_path / "theirs")
    shutil.copytree(ours, theirs.repository, symlinks=True)
    command = [sys.executable, "-m", "composefs_async", "--repo", str(ours), "gc"]
    for arguments in (["-r", "unknown"], []):
        printed = subprocess.run([*command, *arguments], capture_output=True, check=True)
        assert printed.stdout == theirs("gc", *arguments)
        assert (b"no stream or image has this name" in printed.stderr) == (arguments != [])


@pytest.mark.parametrize("root", ["oci-manifest-sha256:", "image", "refs/oci/", "sha256:"])
def test_additional_roots_mean_the_same(cfsctl: Callable[..., Cfsctl], tmp_path: Path, root: str) -> None:
    ours = unpack("g4-sha512-v1", tmp_path / "ours")
    untag(ours, lambda number: False)
    names = sorted(os.listdir(ours / "images" if root == "image" else ours / "streams"))
    full = names[0] if root == "image" else next((n for n in names if n.startswith(root)), root + "basic:latest")
    theirs = cfsctl(tmp_path / "theirs")
    shutil.copytree(ours, theirs.repository, symlinks=True)
    with Repository.open_path(ours) as repo:
        result = repo.gc([full])
    assert (result.objects_removed, result.objects_bytes) == counters(theirs("gc", "-r", full))[:2]
    assert tree(ours) == tree(theirs.repository)


def test_what_cfsctl_would_lose_is_kept(cfsctl: Callable[..., Cfsctl], tmp_path: Path) -> None:
    """Names of live layers and configs are gone: it deletes what they need."""
    ours = unpack("g4-sha512-v1", tmp_path / "ours")
    with Repository.open_path(ours) as repo:
        repo.gc()
    for name in os.listdir(ours / "streams"):
        if name.startswith(("oci-layer-", "oci-config-")):
            os.unlink(ours / "streams" / name)
    theirs = cfsctl(tmp_path / "theirs")
    shutil.copytree(ours, theirs.repository, symlinks=True)
    before = tree(ours)
    with Repository.open_path(ours) as repo:
        assert repo.gc().objects_removed == 0
    assert tree(ours) == before
    assert counters(theirs("gc"))[0] > 0


def test_cfsctl_ignores_our_state_directory(cfsctl: Callable[..., Cfsctl], tmp_path: Path) -> None:
    ours = cfsctl(unpack("g4-sha512-v1", tmp_path / "ours"))
    with Repository.open_path(ours.repository) as repo:
        repo.gc()
        leases.begin(state_of(repo), f"sha256:{'ab' * 32}", "oci:somewhere")
    kept = sorted(str(path) for path in (ours.repository / ".composefs-async").rglob("*"))
    assert [os.path.basename(path) for path in kept] == ["leases", f"sha256:{'ab' * 32}.json", "reach"]
    ours.assert_sound()
    assert counters(ours("gc")) == (0, 0, 0, 0)
    reference = f"oci:{VECTORS}/layouts/one"
    with Repository.open_path(ours.repository) as repo:
        anyio.run(partial(pull, repo, reference, tag="more", platform=Platform("linux", "amd64")))
    ours.assert_sound()
    assert sorted(str(path) for path in (ours.repository / ".composefs-async").rglob("*")) == kept


def test_transactions_of_either_keep_the_other_s_gc_away(cfsctl: Callable[..., Cfsctl], tmp_path: Path) -> None:
    ours = cfsctl(unpack("g4-sha512-v1", tmp_path / "ours"))
    untag(ours.repository, lambda number: False)
    command = [ours.program, "--repo", ours.repository, "transaction"]
    with (
        Repository.open_path(ours.repository) as repo,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process,
    ):
        while f" {process.pid} " not in Path("/proc/locks").read_text():
            assert process.poll() is None
        with pytest.raises(RepositoryInUseError):
            repo.gc(timeout=0)
        process.kill()
        process.wait()
        gc = subprocess.Popen([ours.program, "--repo", ours.repository, "gc"], stdout=subprocess.PIPE)
        while f" {gc.pid} " not in Path("/proc/locks").read_text():  # it waits for our handle
            assert gc.poll() is None
        assert os.listdir(ours.repository / "streams")
    printed, _ = gc.communicate(timeout=60)
    assert counters(printed)[0] > 0
