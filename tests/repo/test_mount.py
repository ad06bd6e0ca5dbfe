"""Images of a repository, mounted by name."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from composefs_async.digest import Algorithm, ObjectId
from composefs_async.erofs.writer import build_image
from composefs_async.errors import ErofsError, ImageNotFoundError, InvalidNameError, MountError, ObjectNotFoundError
from composefs_async.repository import Repository
from composefs_async.results import MountOptions
from composefs_async.tree import Directory, ExternalFile, InlineFile

pytestmark = pytest.mark.usefixtures("no_leaks")

SIZES = [0, 1, 64, 65, 4095, 4096, 4097, 131072, 1_000_000]


def publish(repo: Repository, image: bytes, reference: str) -> ObjectId:
    """Make links to *image* by hand, as composefs-rs does."""
    object_id = repo.ensure_object(image).id
    images = Path(repo.path, "images")
    (images / "refs").mkdir(parents=True, exist_ok=True)
    (images / object_id.hex()).symlink_to(f"../objects/{object_id.path}")
    (images / "refs" / reference).symlink_to(f"../{object_id.hex()}")
    return object_id


def contents() -> dict[str, bytes]:
    return {f"file{size}": (b"%d " % size * size)[:size] for size in SIZES}


@pytest.fixture
def image(repo: Repository) -> ObjectId:
    """An image with files of all sizes, under its id and the reference ``name``."""
    root = Directory(0o40755, 2, 0, 0, 0)
    for name, content in contents().items():
        if len(content) <= 64:
            root.children[name.encode()] = InlineFile(0o100644, 1, 0, 0, 0, (), content)
        else:
            stored = repo.ensure_object(content).id
            root.children[name.encode()] = ExternalFile(0o100644, 1, 0, 0, 0, (), len(content), stored)
    return publish(repo, build_image(root, repo.algorithm, 1), "name")


def read_all(directory: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


@pytest.mark.usefixtures("may_mount")
def test_every_file_of_an_image_can_be_read_by_all_its_names(repo: Repository, image: ObjectId) -> None:
    for name in (image.hex(), "name", "refs/name"):
        mount = repo.mount(name)
        try:
            assert read_all(f"/proc/self/fd/{mount}") == contents()
        finally:
            os.close(mount)


@pytest.mark.usefixtures("may_mount", "image")
def test_a_mount_outlives_the_repository(repo: Repository, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    repo.mount_at("name", place)
    repo.close()
    assert read_all(str(place)) == contents()
    Repository.unmount(place)
    assert read_all(str(place)) == {}


@pytest.mark.usefixtures("may_mount", "image")
@pytest.mark.anyio
async def test_the_async_form_mounts_and_unmounts(repo: Repository, tmp_path: Path) -> None:
    mount = await repo.mount_async("name")
    os.close(mount)
    place = tmp_path / "place"
    place.mkdir()
    await repo.mount_at_async("name", place)
    assert sorted(os.listdir(place)) == sorted(contents())
    await repo.unmount_async(place)
    assert os.listdir(place) == []


@pytest.mark.usefixtures("may_mount", "image")
def test_changes_go_to_the_upper_directory(repo: Repository, tmp_path: Path) -> None:
    place, upper, work = (tmp_path / name for name in ("place", "upper", "work"))
    for path in (place, upper, work):
        path.mkdir()
    try:
        repo.mount_at("name", place, MountOptions(upper, work, read_write=True))
    except MountError as error:
        pytest.skip(f"the file system of tmp_path cannot be an upper layer: {error}")
    try:
        (place / "file65").write_bytes(b"changed")
        assert (place / "file65").read_bytes() == b"changed"
    finally:
        Repository.unmount(place)
    assert read_all(str(upper)) == {"file65": b"changed"}


@pytest.mark.usefixtures("image")
def test_owners_are_those_of_a_user_namespace(repo: Repository, user_namespace: str) -> None:
    with open(user_namespace, "rb") as namespace:
        mount = repo.mount("name", MountOptions(idmap=namespace.fileno()))
    try:
        status = os.stat("file65", dir_fd=mount)
        assert (status.st_uid, status.st_gid) == (1000, 1000)
        assert read_all(f"/proc/self/fd/{mount}") == contents()
    finally:
        os.close(mount)


@pytest.mark.usefixtures("may_mount")
@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("with_acl", [True, False])
def test_access_control_lists_count_where_an_image_has_them(
    repo: Repository, version: int, with_acl: bool, acl: bytes
) -> None:
    xattrs = ((b"system.posix_acl_access", acl),) if with_acl else ()
    file = InlineFile(0o100674, 1, 0, 0, 0, xattrs, b"x")
    publish(repo, build_image(Directory(0o40755, 2, 0, 0, 0, (), {b"file": file}), repo.algorithm, version), "name")
    mount = repo.mount("name")
    try:
        path = f"/proc/self/fd/{mount}/file"
        if with_acl:
            assert os.getxattr(path, "system.posix_acl_access") == acl
        else:
            assert os.listxattr(path) == []
    finally:
        os.close(mount)


@pytest.mark.usefixtures("image")
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("other", ImageNotFoundError),
        ("0" * 64, ImageNotFoundError),
        ("refs/other", ImageNotFoundError),
        ("", InvalidNameError),
        ("../name", InvalidNameError),
        ("refs/../../meta.json", InvalidNameError),
        ("/etc/passwd", InvalidNameError),
    ],
)
def test_only_names_of_images_can_be_mounted(repo: Repository, name: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        repo.mount(name)


def test_an_image_whose_object_is_gone_is_not_found(repo: Repository, image: ObjectId) -> None:
    Path(repo.path, "objects", image.path).unlink()
    with pytest.raises(ObjectNotFoundError, match=image.hex()):
        repo.mount("name")


def test_an_image_that_cannot_be_read_is_named(
    repo: Repository, image: ObjectId, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", failing)
    with pytest.raises(OSError, match="Input/output error") as caught:
        repo.mount(image.hex())
    assert caught.value.filename == f"{repo.path}/objects/{image.path}"


@pytest.mark.parametrize("content", [b"", b"short", bytes(4096)], ids=["empty", "short", "zeros"])
def test_what_is_no_image_is_refused_before_the_kernel_sees_it(repo: Repository, content: bytes) -> None:
    publish(repo, content, "bad")
    with pytest.raises(ErofsError, match="bad"):
        repo.mount("bad")


@pytest.mark.parametrize(
    "options", [{"upper": "/tmp"}, {"work": "/tmp"}, {"read_write": True}], ids=["upper", "work", "read_write"]
)
def test_incomplete_options_are_refused(repo: Repository, image: ObjectId, options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="upper and work"):
        MountOptions(**options)  # type: ignore[arg-type]


def test_the_algorithm_of_the_id_must_be_that_of_the_repository(repo: Repository) -> None:
    other = next(algorithm for algorithm in Algorithm if algorithm is not repo.algorithm)
    with pytest.raises(ImageNotFoundError):
        repo.mount("0" * other.digest_size * 2)
