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


def test_the_tree_of_the_layers_is_that_of_the_image(golden: Golden, capfd: pytest.CaptureFixture[str]) -> None:
    repository, images = golden
    for name, image in images.items():
        stored = image["inspect"]["composefs_erofs"]
        assert run(["--repo", str(repository), "diff", f"oci:{name}", stored]) == 0
        assert run(["--repo", str(repository), "explain", f"oci:{name}", "--expected-digest", stored]) == 0
        assert capfd.readouterr() == ("the images are equal\n", "")


def flattened(layers: list[bytes]) -> dict[str, bytes]:
    """Paths and content of the regular files that layers make, one above the other; what is in /run does not count."""
    files: dict[str, bytes] = {}
    for layer in layers:
        with tarfile.open(fileobj=io.BytesIO(layer), errors="surrogateescape") as archive:
            members = [(os.path.normpath(f"/{member.name}"), member) for member in archive]
            for path, _ in members:
                above, name = os.path.split(path)
                if name == ".wh..wh..opq":
                    remove(files, above)
                elif name.startswith(".wh."):
                    remove(files, os.path.join(above, name.removeprefix(".wh.")), itself=True)
            for path, member in members:
                if os.path.basename(path).startswith(".wh."):
                    continue
                remove(files, path, itself=True, below=not member.isdir())
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None:
                    files[path] = content.read()
                elif member.islnk():
                    files[path] = files[os.path.normpath(f"/{member.linkname}")]
    remove(files, "/run")
    return files


def remove(files: dict[str, bytes], path: str, *, itself: bool = False, below: bool = True) -> None:
    for name in list(files):
        if (itself and name == path) or (below and name.startswith(f"{path.rstrip('/')}/")):
            del files[name]


def mounted(place: Path) -> dict[str, bytes]:
    regular = [path for path in place.rglob("*") if not path.is_symlink() and path.is_file()]
    return {f"/{path.relative_to(place)}": path.read_bytes() for path in regular}


@pytest.mark.usefixtures("may_mount")
def test_a_mounted_image_has_the_files_of_its_layers(
    golden: Golden, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    repository, images = golden
    place = tmp_path / "place"
    place.mkdir()

    def oci(*arguments: str) -> bytes:
        assert run(["--repo", str(repository), "oci", *arguments]) == 0
        return capfdbinary.readouterr().out

    for name in images:
        layers = json.loads(oci("inspect", "--config", name))["rootfs"]["diff_ids"]
        oci("mount", name, str(place))
        try:
            found, paths = mounted(place), list(place.rglob("*"))
        finally:
            Repository.unmount(place)
        assert found == flattened([oci("layer", layer) for layer in layers])
        assert len(paths) == len(oci("dump", name).splitlines()) - 1
        assert len(found) > 1


def test_all_attributes_can_be_asked_for_by_that_word(cli: Any, pulled: Path) -> None:
    on = cli.on(pulled)
    assert on("oci", "dump", "basic", "--xattrs", "all").good().out == on("oci", "dump", "basic", "--xattrs=none").out
