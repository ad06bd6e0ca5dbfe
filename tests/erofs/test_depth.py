"""One limit for directories in one another: what is written can be read, and what cannot be read is not written."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import anyio
import pytest

from composefs_async.digest import Algorithm
from composefs_async.erofs.format import DEPTH_MAX
from composefs_async.erofs.reader.tree import image_to_tree
from composefs_async.erofs.writer import Dialect, build_image
from composefs_async.errors import ErofsError
from composefs_async.oci import Platform, pull
from composefs_async.oci.layout_writer import OciLayoutWriter
from composefs_async.repository import Repository
from composefs_async.tree.inodes import Directory


def nested(count: int) -> Directory:
    """A root with *count* directories in one another."""
    inner = Directory(0o40755, 2, 0, 0, 0)
    for _ in range(count):
        inner = Directory(0o40755, 3, 0, 0, 0, children={b"d": inner})
    return inner


@pytest.mark.parametrize("dialect", list(Dialect))
@pytest.mark.parametrize("version", [0, 1, 2])
def test_the_deepest_that_is_written_can_be_read(version: int, dialect: Dialect) -> None:
    content = build_image(nested(DEPTH_MAX - 1), Algorithm.SHA256, version, dialect=dialect)
    root = image_to_tree(content, Algorithm.SHA256)
    depth = 0
    while b"d" in root.children:
        root, depth = root.children[b"d"], depth + 1  # type: ignore[assignment]
    assert depth == DEPTH_MAX - 1
    with pytest.raises(ErofsError, match="nested deeper than 2048"):
        build_image(nested(DEPTH_MAX), Algorithm.SHA256, version, dialect=dialect)


def test_a_pull_of_deeper_ones_publishes_nothing(tmp_path: Path) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("d/" * DEPTH_MAX)
        member.type = tarfile.DIRTYPE
        tar.addfile(member)
    platform = Platform("linux", "amd64")
    layout = OciLayoutWriter(tmp_path / "layout")
    layout.add_image([layout.add_layer(archive.getvalue(), "none")], platform=platform, tag="deep")
    with Repository.init(tmp_path / "repo", insecure=True) as repo:

        async def work() -> None:
            await pull(repo, f"oci:{tmp_path}/layout:deep", tag="deep", platform=platform)

        with pytest.raises(Exception, match=r"nested deeper|too long|deep"):
            anyio.run(work)
        assert repo.references() == []
        assert repo.named_streams() == []
        assert repo.fsck().ok
