"""Images that are mounted are kept by garbage collection, as far as the mount table shows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from composefs_async._maintenance.mounted import mounted_images
from composefs_async._sys import mount_table
from composefs_async.digest import Algorithm
from composefs_async.repository import Repository, state_of

from .garbage import image, links, objects, stream

ShowMounts = Callable[..., None]


@pytest.fixture
def show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ShowMounts:
    """Puts mounts, each a source and a type of file system, in place of the mount table."""

    def write(*mounts: tuple[str, str]) -> None:
        lines = [
            f"{30 + number} 1 0:{number} / /mnt\\040{number} ro,relatime shared:1 - {kind} {source} ro"
            for number, (source, kind) in enumerate(mounts)
        ]
        (tmp_path / "mountinfo").write_text(
            "".join(f"{line}\n" for line in ["21 1 8:1 / / rw - ext4 /dev/a rw", *lines])
        )

    monkeypatch.setattr(mount_table, "_TABLE", str(tmp_path / "mountinfo"))
    write()
    return write


def test_mounted_image_stays_with_its_files(empty: Repository, show: ShowMounts) -> None:
    mounted, gone = image(empty, ["mounted file"]), image(empty, ["other file"])
    show((f"composefs:{mounted.hex()}", "overlay"))
    for dry_run in (True, False):
        result = empty.gc(dry_run=dry_run)
        assert (result.mounted, result.pruned) == ((mounted.hex(),), (f"images/{gone.hex()}",))
    assert objects(empty) == {"mounted file", mounted.hex()}
    assert links(empty) == {f"images/{mounted.hex()}"}
    assert empty.gc(ignore_mounts=True).mounted == ()
    assert (objects(empty), links(empty)) == (set(), set())


def test_mounted_image_stays_without_its_name(empty: Repository, show: ShowMounts) -> None:
    mounted = image(empty, ["mounted file"])
    Path(empty.path, "images", mounted.hex()).unlink()
    show((f"composefs:{mounted.hex()}", "overlay"))
    assert empty.gc().objects_removed == 0
    assert objects(empty) == {"mounted file", mounted.hex()}


@pytest.mark.anyio
async def test_image_that_is_mounted_by_a_reference_stays(empty: Repository, show: ShowMounts) -> None:
    mounted = image(empty, ["mounted file"], "a b")
    show(("composefs:refs/a\\040b", "overlay"))
    result = await empty.gc_async()
    assert (result.objects_removed, result.mounted) == (0, ())
    assert mounted_images(state_of(empty)) == (mounted,)


def test_other_mounts_keep_nothing(empty: Repository, show: ShowMounts) -> None:
    there = image(empty, ["file"])
    other = "sha512" if empty.algorithm is Algorithm.SHA256 else "sha256"
    width = 64 if other == "sha512" else 32
    show(
        (there.hex(), "overlay"),
        (f"composefs:{there.hex()}", "tmpfs"),
        (f"composefs:{'00' * width}", "overlay"),
        (f"composefs:{'00' * empty.algorithm.digest_size}", "overlay"),
        ("composefs:", "overlay"),
        ("composefs:../..", "overlay"),
        ("composefs:refs/..", "overlay"),
        ("composefs:\\377\\012", "overlay"),
    )
    assert mounted_images(state_of(empty)) == ()
    empty.gc()
    assert objects(empty) == set()


def test_mount_that_comes_during_a_run_keeps_its_image(
    empty: Repository, show: ShowMounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = image(empty, ["late file"])
    stream(empty, "dead", ["dead file"])

    def mount(event: object) -> None:
        show((f"composefs:{late.hex()}", "overlay"))

    empty.gc(progress=mount)
    assert objects(empty) == {"late file", late.hex()}


def test_without_a_mount_table_nothing_is_mounted(
    empty: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mount_table, "_TABLE", str(tmp_path / "missing"))
    image(empty, ["file"])
    assert empty.gc().mounted == ()
    assert objects(empty) == set()


@pytest.mark.usefixtures("may_mount")
def test_real_mount_keeps_its_image(empty: Repository, tmp_path: Path) -> None:
    mounted = image(empty, ["mounted file"], "name")
    place = tmp_path / "place"
    place.mkdir()
    empty.mount_at("refs/name", place)
    try:
        empty.remove_reference("images", "name")
        assert empty.gc().mounted == (mounted.hex(),)
        assert (place / "file0").read_bytes().startswith(b"mounted file")
        assert empty.usage().leased.objects == 2
    finally:
        empty.unmount(place)
    assert empty.gc().objects_removed == 2
