"""``oci dump``, ``oci compute-id`` and ``oci mount``, on the repositories that cfsctl made."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from composefs_async.cli.app import run
from composefs_async.repository import Repository

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

VECTORS = Path(__file__).parent.parent / "vectors" / "repository"
FLAVOURS = ["g4-sha256-v1", "g4-sha256-v2", "g4-sha512-v1"]
UNREADABLE = "pax:latest"  # it has a name of more than 255 bytes, so no kernel lists its directory and we write none


Golden = tuple[Path, dict[str, dict[str, Any]]]


@pytest.fixture(params=FLAVOURS)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Golden:
    """A repository, and what cfsctl says of its images, by their tag."""
    content = zstd.decompress((VECTORS / f"{request.param}.tar.zst").read_bytes())
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(tmp_path / "golden", filter="fully_trusted")
    (meta,) = (tmp_path / "golden").rglob("meta.json")
    facts: dict[str, Any] = json.loads((VECTORS / f"{request.param}.json").read_text())
    return meta.parent, {name: image for name, image in facts["images"].items() if name != UNREADABLE}


def call(capfd: pytest.CaptureFixture[str], repository: Path, *arguments: str) -> str:
    capfd.readouterr()
    code = run(["--repo", str(repository), "oci", *arguments])
    out, err = capfd.readouterr()
    assert (code, err) == (0, "")
    return out


def test_the_id_is_what_cfsctl_prints(golden: Golden, capfd: pytest.CaptureFixture[str]) -> None:
    repository, images = golden
    found = {name: call(capfd, repository, "compute-id", name).strip() for name in images}
    assert found == {name: image["compute-id"].strip() for name, image in images.items()}
    assert found == {name: image["inspect"]["composefs_erofs"] for name, image in images.items()}


def test_the_dump_is_what_cfsctl_prints(golden: Golden, capfd: pytest.CaptureFixture[str]) -> None:
    repository, images = golden
    found = {name: call(capfd, repository, "dump", name) for name in images}
    assert found == {name: image["dump"] for name, image in images.items()}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_an_image_can_be_mounted_by_its_tag(golden: Golden, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if "erofs" not in Path("/proc/filesystems").read_text().split():
        pytest.skip("the kernel has no erofs")
    repository, images = golden
    place = tmp_path / "place"
    place.mkdir()
    for name in images:
        assert call(capfd, repository, "mount", name, str(place)) == ""
        try:
            paths = sorted(place.rglob("*"))
            regular = [path for path in paths if not path.is_symlink() and path.is_file()]
            complete = [len(path.read_bytes()) == path.stat().st_size for path in regular]
        finally:
            Repository.unmount(place)
        lines = call(capfd, repository, "dump", name).splitlines()
        assert len(paths) == len(lines) - 1
        assert complete == [True] * len(regular)
