"""Each member of an image takes memory while it is made: their number has a limit, which can be raised."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from composefs_async.errors import OciError
from composefs_async.oci import Platform, pull
from composefs_async.oci.layout_writer import OciLayoutWriter
from composefs_async.oci.limits import Limits
from composefs_async.repository import Repository

pytestmark = pytest.mark.anyio

PLATFORM = Platform("linux", "amd64")


def archive(first: int, count: int) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for number in range(first, first + count):
            tar.addfile(tarfile.TarInfo(f"file{number}"))
    return content.getvalue()


@pytest.fixture
def reference(tmp_path: Path) -> str:
    """An image of two layers with 40 members each."""
    layout = OciLayoutWriter(tmp_path / "layout")
    layers = [layout.add_layer(archive(first, 40), "none") for first in (0, 40)]
    layout.add_image(layers, platform=PLATFORM)
    return f"oci:{tmp_path}/layout:latest"


@pytest.mark.parametrize("most", [1, 39, 40, 79])
async def test_more_members_are_refused_and_nothing_is_published(most: int, reference: str, tmp_path: Path) -> None:
    async with Repository.init(tmp_path / "repo", insecure=True) as repo:
        with pytest.raises(OciError, match=f"more than {most} members"):
            await pull(repo, reference, tag="t", platform=PLATFORM, limits=Limits(max_members=most))
        assert (repo.references(), repo.named_streams(), repo.leases()) == ([], [], [])
        result = await pull(repo, reference, tag="t", platform=PLATFORM, limits=Limits(max_members=80))
        assert len(result.layers) == 2
