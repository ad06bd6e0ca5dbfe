"""Images of a repository: storing, naming, finding, and what they refer to."""

from __future__ import annotations

import itertools
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from composefs_async import fsverity
from composefs_async.digest import Algorithm, ObjectId
from composefs_async.erofs.reader.tree import image_to_tree
from composefs_async.erofs.references import image_object_ids
from composefs_async.erofs.writer import build_image
from composefs_async.errors import (
    DigestMismatchError,
    ErofsError,
    ImageNotFoundError,
    InvalidNameError,
    ObjectNotFoundError,
    ReadOnlyRepositoryError,
    VerityMissingError,
)
from composefs_async.repository import Repository, state_of
from composefs_async.tree.inodes import Directory, ExternalFile, InlineFile


def object_ids(algorithm: Algorithm) -> list[ObjectId]:
    return [ObjectId(bytes([number]) * algorithm.digest_size) for number in (1, 2)]


def image(algorithm: Algorithm, version: int = 1) -> bytes:
    """An image that refers to two objects, to one of them twice."""
    first, second = object_ids(algorithm)
    files = {
        name: ExternalFile(0o100644, 1, 0, 0, 0, (), 100, digest) for name, digest in ((b"a", first), (b"b", second))
    }
    files[b"c"] = ExternalFile(0o100600, 1, 0, 0, 0, (), 100, first)
    root = Directory(0o040755, 2, 0, 0, 0, (), {**files, b"inline": InlineFile(0o100644, 1, 0, 0, 0, (), b"x")})
    return build_image(root, algorithm, version)


def names(path: Path) -> dict[str, str]:
    return {str(entry.relative_to(path)): os.readlink(entry) for entry in sorted(path.rglob("*")) if entry.is_symlink()}


def read(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


@pytest.mark.parametrize("name", [None, "os", "hosts/web.1"])
def test_image_is_published_by_its_id_and_by_name(name: str | None, repo: Repository, tmp_path: Path) -> None:
    content = image(repo.algorithm)
    flushes = state_of(repo).syncs.count
    found = repo.write_image(content, name)
    assert state_of(repo).syncs.count == flushes + 1
    assert found == fsverity.digest(content, repo.algorithm)
    links = {f"images/{found}": f"../objects/{found.path}"}
    if name is not None:
        links[f"images/refs/{name}"] = f"{'../' * (1 + name.count('/'))}{found}"
    assert names(tmp_path / "repo") == links
    for known in [found.hex(), found.hex().upper(), found.text, *([name, f"refs/{name}"] if name else [])]:
        assert repo.has_image(known) == found
        assert read(repo.open_image(known)) == content
        assert repo.objects_for_image(known) == object_ids(repo.algorithm)


def test_same_image_again_changes_nothing(repo: Repository, tmp_path: Path) -> None:
    first = repo.write_image(image(repo.algorithm), "a")
    before = {entry: entry.lstat() for entry in (tmp_path / "repo").rglob("*")}
    assert repo.write_image(image(repo.algorithm), "a") == first
    assert {entry: entry.lstat() for entry in (tmp_path / "repo").rglob("*")} == before


def test_name_moves_to_another_image(repo: Repository) -> None:
    first = repo.write_image(image(repo.algorithm, 1), "a")
    second = repo.write_image(image(repo.algorithm, 2), "a")
    assert repo.has_image("refs/a") == second != first
    assert repo.has_image(first.hex()) == first


@pytest.mark.parametrize("version", [0, 1, 2])
def test_imported_image_is_the_same_as_a_written_one(version: int, repo: Repository) -> None:
    content = image(repo.algorithm, version)
    pieces = (content[at : at + 1000] for at in range(0, len(content), 1000))
    found = repo.import_image("a", pieces)
    assert (found, repo.has_image("refs/a")) == (fsverity.digest(content, repo.algorithm), found)
    assert repo.write_image(content, "a") == found


BAD: dict[str, Callable[[Algorithm], bytes]] = {
    "empty": lambda algorithm: b"",
    "no image": lambda algorithm: b"x" * 8192,
    "cut": lambda algorithm: image(algorithm)[:-4096],
    "of another algorithm": lambda algorithm: image(next(other for other in Algorithm if other is not algorithm)),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_image_is_not_imported(kind: str, repo: Repository, tmp_path: Path) -> None:
    with pytest.raises(ErofsError):
        repo.import_image("a", [BAD[kind](repo.algorithm)])
    assert os.listdir(tmp_path / "repo") == ["meta.json"]


def announcing(blocks: int, algorithm: Algorithm) -> bytes:
    """The first block of an image that says that it has so many."""
    start = bytearray(image(algorithm)[:4096])
    start[1060:1064] = blocks.to_bytes(4, "little")
    return bytes(start)


@pytest.mark.parametrize(
    ("blocks", "reason"),
    [(3, "more than the 12288 bytes that its superblock announces"), (257, "1052672 bytes is longer than the limit")],
    ids=["more than announced", "over the limit"],
)
def test_endless_image_is_refused(repo: Repository, monkeypatch: pytest.MonkeyPatch, blocks: int, reason: str) -> None:
    monkeypatch.setattr("composefs_async.erofs.reader.superblock.IMAGE_LIMIT", 1 << 20)
    with pytest.raises(ErofsError, match=reason):
        repo.import_image(None, itertools.chain([announcing(blocks, repo.algorithm)], itertools.repeat(bytes(512))))


def test_what_does_not_begin_like_an_image_is_not_read_to_its_end(repo: Repository) -> None:
    with pytest.raises(ErofsError, match="its first four bytes are wrong"):
        repo.import_image(None, itertools.repeat(bytes(512)))


def test_more_than_a_gibibyte_is_refused_without_being_read(repo: Repository, tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "w+b") as file:
        file.truncate((1 << 30) + 1)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
            reason = f"an image of {(1 << 30) + 1} bytes is longer than the limit of {1 << 30}"
            for work in (
                lambda: repo.write_image(view, "name"),
                lambda: repo.import_image("name", [view]),
                lambda: image_to_tree(view),
                lambda: image_object_ids(view),
            ):
                with pytest.raises(ErofsError, match=reason):
                    work()
    assert os.listdir(tmp_path / "repo") == ["meta.json"]


@pytest.mark.parametrize("name", ["", "..", "a/../b", "/a", "a\0"])
def test_name_that_would_leave_its_directory_is_refused(name: str, repo: Repository, tmp_path: Path) -> None:
    for work in (
        lambda: repo.write_image(b"", name),
        lambda: repo.import_image(name, [b""]),
        lambda: repo.open_image(name),
        lambda: repo.open_image(f"refs/{name}"),
        lambda: repo.has_image(f"refs/{name}"),
    ):
        with pytest.raises(InvalidNameError):
            work()
    assert os.listdir(tmp_path / "repo") == ["meta.json"]


def test_image_that_is_not_there_is_not_found(repo: Repository) -> None:
    for name in ("a", "refs/a", object_ids(repo.algorithm)[0].hex()):
        assert repo.has_image(name) is None
        for work in (repo.open_image, repo.objects_for_image):
            with pytest.raises(ImageNotFoundError) as caught:
                work(name)
            assert caught.value.name == name


def test_image_whose_object_is_lost_is_told_from_one_that_never_was(repo: Repository, tmp_path: Path) -> None:
    found = repo.write_image(image(repo.algorithm), "a")
    (tmp_path / "repo/objects" / found.path).unlink()
    for name in ("a", found.hex()):
        assert repo.has_image(name) is None
        for work in (repo.open_image, repo.objects_for_image):
            with pytest.raises(ObjectNotFoundError, match=found.hex()):
                work(name)


def test_reference_whose_image_has_lost_its_name_is_not_found(repo: Repository, tmp_path: Path) -> None:
    found = repo.write_image(image(repo.algorithm), "a")
    (tmp_path / f"repo/images/{found}").unlink()
    assert repo.has_image("a") is None
    with pytest.raises(ImageNotFoundError):
        repo.open_image("a")


def test_name_that_leads_to_another_image_is_found_out(repo: Repository, tmp_path: Path) -> None:
    first = repo.write_image(image(repo.algorithm, 1), "a")
    second = repo.write_image(image(repo.algorithm, 2))
    link = tmp_path / f"repo/images/{first}"
    link.unlink()
    link.symlink_to(f"../objects/{second.path}")
    for name in ("a", first.hex()):
        for work in (repo.open_image, repo.objects_for_image):
            with pytest.raises(DigestMismatchError) as caught:
                work(name)
            assert (caught.value.expected, caught.value.found) == (first.hex(), second.hex())
        assert repo.has_image(name) is None


@pytest.mark.parametrize("target", ["x", "refs", ".."])
def test_reference_that_names_no_image_is_not_found(target: str, repo: Repository, tmp_path: Path) -> None:
    found = repo.write_image(image(repo.algorithm), "a")
    (tmp_path / "repo/images/refs/b").symlink_to(f"../{target}")
    (tmp_path / "repo/images/x").symlink_to(f"../objects/{found.path}")
    assert repo.has_image("b") is None
    with pytest.raises(ImageNotFoundError):
        repo.open_image("b")


def test_changed_image_gives_no_objects(repo: Repository, tmp_path: Path) -> None:
    found = repo.write_image(image(repo.algorithm), "a")
    path = tmp_path / "repo/objects" / found.path
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DigestMismatchError):
        repo.objects_for_image("a")


def test_written_image_is_not_looked_at_until_its_objects_are_asked_for(repo: Repository) -> None:
    found = repo.write_image(b"anything")
    assert read(repo.open_image(found.hex())) == b"anything"
    with pytest.raises(ErofsError):
        repo.objects_for_image(found.hex())


def test_secure_repository_measures_the_image(repo: Repository) -> None:
    repo.write_image(image(repo.algorithm), "a")
    state_of(repo).secure = True
    with pytest.raises(VerityMissingError):
        repo.open_image("a")


def test_read_only_repository_takes_no_image(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ReadOnlyRepositoryError("x", "it is a test")

    monkeypatch.setattr(state_of(repo), "require_writable", refuse)
    with pytest.raises(ReadOnlyRepositoryError):
        repo.write_image(b"")
    with pytest.raises(ReadOnlyRepositoryError):
        repo.import_image(None, [])


@pytest.mark.anyio
@pytest.mark.usefixtures("no_blocking")
async def test_async_forms_do_the_same(repo: Repository) -> None:
    content = image(repo.algorithm)
    found = await repo.write_image_async(content, "a")
    assert await repo.import_image_async("b", [content]) == found
    assert await repo.has_image_async("refs/b") == found
    os.close(await repo.open_image_async("b"))
    assert await repo.objects_for_image_async("a") == object_ids(repo.algorithm)
