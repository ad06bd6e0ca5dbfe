"""Images from one repository into another: of one algorithm and of two, verified, interrupted, shared."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from composefs_async import Algorithm, Repository
from composefs_async.boot import ensure_boot_image
from composefs_async.errors import DigestMismatchError, ObjectNotFoundError, OciError, StreamNotFoundError
from composefs_async.oci import Platform, copy_image, pull
from composefs_async.oci.catalogue import images, open_image

from ..boot.conftest import B1_FILES, layer_of, write_layout

VECTORS = Path(__file__).parent.parent / "vectors" / "layouts"
LARGE = {"usr/large": os.urandom(300_000), "usr/other": b"x" * 100}

pytestmark = pytest.mark.anyio


async def make(top: Path, algorithm: Algorithm = Algorithm.SHA256, version: int = 1) -> Repository:
    return await Repository.init_async(top, algorithm=algorithm, erofs_version=version, insecure=True)


async def source_of(top: Path) -> Repository:
    repo = await make(top / "source")
    await pull(repo, write_layout(top / "layout", layer_of({**B1_FILES, **LARGE})), tag="demo")
    ensure_boot_image(repo, "demo")
    await pull(repo, f"oci:{VECTORS}/artifact", tag="artifact", platform=Platform("linux", "amd64"))
    return repo


async def test_an_image_comes_with_all_its_erofs_images(tmp_path: Path) -> None:
    async with await source_of(tmp_path) as source, await make(tmp_path / "target") as target:
        done = await copy_image(target, source, "demo", tag="copy")
        before, after = open_image(source, "demo"), open_image(target, "copy")
        assert (after.manifest.raw, after.config_raw, after.layers) == (
            before.manifest.raw,
            before.config_raw,
            before.layers,
        )
        assert after.images == before.images
        assert len(after.images) == 2
        assert (done.manifest_id, done.config_id) == (after.manifest_id, after.config_id)
        assert done.copied + done.shared > 5
        assert target.gc().objects_removed == 0
        assert [finding for finding in target.fsck().findings if finding.kind != "leftover"] == []
        again = await copy_image(target, source, "@" + before.manifest.digest, tag="again")
        assert (again.copied, again.shared, again.size) == (0, 0, 0)
        assert sorted(image.name for image in images(target)) == ["again", "copy"]


@pytest.mark.parametrize("algorithm", Algorithm)
async def test_an_image_without_a_tag_goes_with_the_next_gc(tmp_path: Path, algorithm: Algorithm) -> None:
    async with await source_of(tmp_path) as source, await make(tmp_path / "target", algorithm) as target:
        done = await copy_image(target, source, "demo")
        assert done.tag is None
        assert open_image(target, f"@{done.manifest_digest}").config is not None
        assert images(target) == []
        assert target.gc().streams_pruned > 0


async def test_layers_are_imported_anew_for_another_algorithm(tmp_path: Path) -> None:
    async with await source_of(tmp_path) as source, await make(tmp_path / "target", Algorithm.SHA512, 2) as target:
        done = await copy_image(target, source, "demo", tag="demo")
        assert open_image(target, "demo").manifest.raw == open_image(source, "demo").manifest.raw
        assert done.copied > 0
        assert list(open_image(target, "demo").images) == ["composefs.image"]
        assert [finding for finding in target.fsck().findings if finding.kind != "leftover"] == []
        assert target.leases() == []
        with pytest.raises(OciError, match="an artifact needs one algorithm"):
            await copy_image(target, source, "artifact", tag="artifact")
        with pytest.raises(OciError, match="zerocopy needs"):
            await copy_image(target, source, "demo", tag="demo", zerocopy=True)


async def test_an_artifact(tmp_path: Path) -> None:
    async with await source_of(tmp_path) as source, await make(tmp_path / "target") as target:
        await copy_image(target, source, "artifact", tag="artifact")
        assert open_image(target, "artifact").layers == open_image(source, "artifact").layers
        assert target.gc().objects_removed == 0


@pytest.mark.parametrize("algorithm", Algorithm)
async def test_what_is_not_there_or_damaged(tmp_path: Path, algorithm: Algorithm) -> None:
    async with await source_of(tmp_path) as source, await make(tmp_path / "target", algorithm) as target:
        with pytest.raises(StreamNotFoundError):
            await copy_image(target, source, "nothing", tag="x")
        image = open_image(source, "demo").boot_image(1)
        assert image is not None
        found = [tmp_path / "source/objects" / each.path for each in source.objects_for_image(image.hex())]
        path = max(found, key=lambda each: each.stat().st_size)
        content = bytearray(path.read_bytes())
        content[0] ^= 1
        path.chmod(0o644)
        path.write_bytes(content)
        with pytest.raises(DigestMismatchError):
            await copy_image(target, source, "demo", tag="x")
        path.unlink()
        with pytest.raises(ObjectNotFoundError):
            await copy_image(target, source, "demo", tag="x")
        assert images(target) == []


@pytest.fixture
def reflinks(disk_path: Path, may_mount: None) -> Iterator[Path]:
    """A directory on a file system with reflinks."""
    disk, place = disk_path / "disk", disk_path / "mnt"
    with disk.open("wb") as file:
        file.truncate(400 << 20)
    place.mkdir()
    for command in (["mkfs.xfs", "-q", "-m", "reflink=1", disk], ["mount", "-o", "loop", disk, place]):
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("no file system with reflinks can be mounted")
    yield place
    subprocess.run(["umount", place], check=True)


async def test_content_is_shared_where_the_file_system_can(reflinks: Path) -> None:
    async with await source_of(reflinks) as source, await make(reflinks / "target") as target:
        done = await copy_image(target, source, "demo", tag="demo", zerocopy=True)
        assert (done.copied, done.shared > 5) == (0, True)


async def test_zerocopy_copies_nothing(tmp_path: Path) -> None:
    async with await source_of(tmp_path) as source, await make(tmp_path / "target") as target:
        with pytest.raises(OSError, match="reflinks"):
            await copy_image(target, source, "demo", tag="demo", zerocopy=True)
        assert images(target) == []
