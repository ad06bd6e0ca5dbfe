"""The forms that do not block, on every event loop, with nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from anyio import to_thread

from composefs_async import Algorithm, Repository
from composefs_async.boot import (
    check_boot_async,
    check_seals_async,
    directory_boot_tree,
    directory_boot_tree_async,
    ensure_boot_image_async,
    find_boot_image_async,
    image_boot_tree_async,
    imported_image,
    prepare_boot_async,
    remove_boot_image_async,
    seal_layout,
    unprepare_boot_async,
)
from composefs_async.digest import ObjectId
from composefs_async.oci import pull
from composefs_async.oci.catalogue import open_image_async
from composefs_async.tree import write_dump

from .conftest import B1_FILES, layer_of, write_layout

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_blocking", "no_leaks")]

V1 = "8931c60a67cd196968759bede6c2ad1392710963e6f851380dcd4e515e860cc2"
V2 = "6841157858477e129c5b697c1b1bc34b174aa4dc368495cde670b8e0eb49ba37"


@pytest.fixture
def reference(tmp_path: Path) -> str:
    return write_layout(tmp_path / "layout", layer_of(dict(B1_FILES)))


async def test_a_bootable_image_from_its_pull_to_its_end(tmp_path: Path, reference: str) -> None:
    (boot := tmp_path / "boot").mkdir()
    async with await Repository.init_async(tmp_path / "repo", algorithm=Algorithm.SHA256, insecure=True) as repo:
        await pull(repo, reference, tag="demo")
        image = await ensure_boot_image_async(repo, "demo")
        assert image.boot_image(1) == ObjectId.from_hex(V1)
        assert (await find_boot_image_async(repo, "demo", ObjectId.from_hex(V2))).variant.version == 2
        assert sorted((await image_boot_tree_async(repo, image)).children)[:2] == [b"boot", b"etc"]
        prepared = await prepare_boot_async(repo, "demo", boot)
        assert prepared.image.hex() == V1
        assert (await check_boot_async(repo, boot / "loader/entries/6.1.0-demo.conf")).ok
        assert len((await unprepare_boot_async(repo, "demo", boot)).removed) == 3
        assert (await remove_boot_image_async(repo, "demo")).boot_image(1) is None
        assert (await remove_boot_image_async(repo, "demo")).image(1) == image.image(1)
        assert (await repo.gc_async()).images_pruned == 2
        assert [each for each in (await repo.fsck_async()).findings if each.kind != "leftover"] == []


async def test_images_and_directories_without_a_repository(tmp_path: Path, reference: str, b2: Path) -> None:
    async with imported_image(reference, Algorithm.SHA256) as (repo, image):
        assert image.manifest.digest == (await open_image_async(repo, "image")).manifest.digest
        place = Path(repo.path)
    assert not await to_thread.run_sync(place.parent.exists)
    tree = await directory_boot_tree_async(b2)
    other = await to_thread.run_sync(directory_boot_tree, b2)
    assert list(write_dump(tree)) == list(write_dump(other))


async def test_seals(tmp_path: Path, reference: str) -> None:
    done = await seal_layout(tmp_path / "layout", "demo", Algorithm.SHA256)
    async with await Repository.init_async(tmp_path / "repo", algorithm=Algorithm.SHA256, insecure=True) as repo:
        await pull(repo, reference, tag="demo")
        assert [check.good for check in await check_seals_async(repo, "demo")] == [True] * 3
    assert done.annotations["composefs.merged.bootable.erofs.v1.fsverity-sha256-12"] == V1
