"""Readers against composefs-info, on images of mkcomposefs and of our writer."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from composefs_async.erofs.format import XATTR_PREFIXES
from composefs_async.erofs.reader.tree import image_to_tree
from composefs_async.erofs.references import image_object_ids
from composefs_async.erofs.writer import Dialect, build_image
from composefs_async.tree.dumpfile import parse_dump
from composefs_async.tree.dumpwriter import write_dump
from composefs_async.tree.inodes import Directory, ExternalFile, InlineFile
from composefs_async.tree.walk import walk

VECTORS = Path(__file__).parents[1] / "vectors"
DUMPS = [VECTORS / "hostile" / "classic.dump", *sorted((VECTORS / "image").glob("*.dump"))]

OBJECT_PATH_SIZE = 65
MARKS = {
    space + b".overlay." + mark for space in (b"trusted", b"user") for mark in (b"opaque", b"whiteout", b"whiteouts")
}

LOST = {(prefix, b"") for prefix in XATTR_PREFIXES.values()}


@pytest.fixture(params=DUMPS, ids=lambda path: str(path.stem))
def dump_file(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def run(tool: str, *args: str | Path) -> bytes:
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not on PATH")
    return subprocess.run([tool, *args], check=True, capture_output=True).stdout


def text(root: Directory) -> bytes:
    """The dump of a tree without what composefs-info cannot tell.

    It takes any file with one mark for a whiteout, leaves marks on the directories of whiteouts and drops a user's
    own ones, loses an empty attribute whose name is a mere prefix, and reads up to two bytes too many of a path that
    has not the length of that of an object.
    """
    for _, inode in walk(root):
        if isinstance(inode, InlineFile) and (b"trusted.overlay.whiteout", b"") in inode.xattrs:
            inode.mode = stat.S_IFCHR | inode.permissions
        inode.xattrs = tuple(pair for pair in inode.xattrs if pair[0] not in MARKS and pair not in LOST)
        if isinstance(inode, ExternalFile) and inode.payload and len(inode.payload) != OBJECT_PATH_SIZE:
            inode.payload = b"strange"
    return b"".join(write_dump(root))


def images(dump_file: Path, folder: Path) -> list[Path]:
    """The same tree by both programs in both layouts."""
    found = []
    for version in (0, 1):
        theirs, ours = folder / f"theirs-{version}.img", folder / f"ours-{version}.img"
        run("mkcomposefs", "--from-file", f"--min-version={version}", f"--max-version={version}", dump_file, theirs)
        ours.write_bytes(build_image(parse_dump(dump_file.read_bytes()), version=version, dialect=Dialect.C))
        found += [theirs, ours]
    return found


def test_dumps_are_the_same(dump_file: Path, tmp_path: Path) -> None:
    for image in images(dump_file, tmp_path):
        assert text(image_to_tree(image.read_bytes())) == text(parse_dump(run("composefs-info", "dump", image)))


def test_objects_are_the_same(dump_file: Path, tmp_path: Path) -> None:
    for image in images(dump_file, tmp_path):
        data = image.read_bytes()
        files = [inode for _, inode in walk(image_to_tree(data)) if isinstance(inode, ExternalFile)]
        ours = sorted({file.path for file in files if file.path})
        theirs = run("composefs-info", "objects", image).splitlines()
        # It reads up to two bytes too many.
        assert [their[: len(our)] for our, their in zip(ours, theirs, strict=True)] == ours
        paths = {found.path.encode() for found in image_object_ids(data)}
        assert {path for path in ours if len(path) == OBJECT_PATH_SIZE} <= paths
