"""Mounts of a secure repository: the kernel reads nothing that fs-verity does not guard."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from composefs_async import Algorithm, Repository
from composefs_async._sys.mount import Backing, KernelOptions, mount_composefs
from composefs_async.erofs.writer import build_image
from composefs_async.errors import DigestMismatchError, VerityMissingError

CONTENT = {"empty": b"", "inline": b"x" * 64, "small": b"y" * 65, "large": bytes(range(256)) * 4000}


@pytest.fixture(params=list(Algorithm), ids=lambda algorithm: algorithm.value)
def repo(request: pytest.FixtureRequest, data_dir: Path) -> Iterator[Repository]:
    repository = Repository.init(data_dir / "repo", algorithm=request.param)
    source = data_dir / "source"
    source.mkdir()
    for name, content in CONTENT.items():
        (source / name).write_bytes(content)
    with repository:
        repository.write_image(build_image(repository.scan_directory(source), request.param, 1), "name")
        yield repository


def read_all(mount: int) -> dict[str, bytes]:
    top = Path(f"/proc/self/fd/{mount}")
    return {path.name: path.read_bytes() for path in top.iterdir()}


def object_path(repo: Repository, content: bytes) -> Path:
    return Path(repo.path, "objects", repo.ensure_object(content).id.path)


def replace(path: Path, content: bytes) -> None:
    """Put an unprotected file in the place of an object."""
    other = path.with_suffix(".other")
    other.write_bytes(content)
    other.rename(path)


def test_every_file_can_be_read(repo: Repository) -> None:
    for name in ("name", repo.named_images()[0][1]):
        mount = repo.mount(name)
        try:
            assert read_all(mount) == CONTENT
        finally:
            os.close(mount)


def test_an_image_is_mounted_through_a_loop_device(repo: Repository) -> None:
    image = repo.open_image("refs/name")
    try:
        options = KernelOptions(verity=True, backings=(Backing.LOOP,))
        mount = mount_composefs(image, "name", repo.objects_dir(), options)
    finally:
        os.close(image)
    try:
        assert read_all(mount) == CONTENT
    finally:
        os.close(mount)


@pytest.mark.parametrize("content", [CONTENT["large"], CONTENT["large"][:-1] + b"!"], ids=["same", "other"])
def test_an_object_that_lost_its_protection_cannot_be_opened(repo: Repository, content: bytes) -> None:
    replace(object_path(repo, CONTENT["large"]), content)
    mount = repo.mount("name")
    try:
        with pytest.raises(OSError, match="Input/output") as caught:
            os.open("large", os.O_RDONLY, dir_fd=mount)
        assert caught.value.errno == errno.EIO
        fd = os.open("small", os.O_RDONLY, dir_fd=mount)
        os.close(fd)
    finally:
        os.close(mount)


def test_another_object_in_the_place_of_one_cannot_be_opened(repo: Repository) -> None:
    small, large = (object_path(repo, CONTENT[name]) for name in ("small", "large"))
    large.unlink()
    os.link(small, large)
    mount = repo.mount("name")
    try:
        with pytest.raises(OSError, match="Input/output"):
            os.open("large", os.O_RDONLY, dir_fd=mount)
    finally:
        os.close(mount)


def test_an_image_that_lost_its_protection_is_not_mounted(repo: Repository) -> None:
    _, digits = repo.named_images()[0]
    path = Path(repo.path, "images", digits).resolve()
    replace(path, path.read_bytes())
    with pytest.raises(VerityMissingError, match=digits):
        repo.mount("name")


def test_another_image_in_the_place_of_one_is_not_mounted(repo: Repository) -> None:
    _, digits = repo.named_images()[0]
    path = Path(repo.path, "images", digits).resolve()
    small = object_path(repo, CONTENT["small"])
    path.unlink()
    os.link(small, path)
    with pytest.raises(DigestMismatchError, match=digits):
        repo.mount("name")
