"""Nothing below a repository is opened through a link, but for directories that its owner has linked."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from composefs_async._sys import beneath
from composefs_async.digest import ObjectId
from composefs_async.errors import ComposefsError, MetadataError
from composefs_async.repository import Repository, state_of
from composefs_async.splitstream import OCI_LAYER

CONTENT = b"content" * 100


@pytest.fixture(params=["openat2", "steps"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the system call, and as on a kernel without it."""
    monkeypatch.setattr(beneath, "_refused", {437} if request.param == "steps" else set())
    name: str = request.param
    return name


def make_tree(top: Path) -> None:
    (top / "a/b").mkdir(parents=True)
    (top / "a/b/file").write_text("inside")
    (top / "outside").mkdir()
    (top / "outside/file").write_text("outside")
    (top / "a/link").symlink_to("../outside")
    (top / "a/file-link").symlink_to("../outside/file")
    (top / "a/b/here").symlink_to("file")


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("b/file", 0),
        ("b", 0),
        (".", 0),
        ("link", errno.ELOOP),
        ("link/file", errno.ELOOP),
        ("file-link", errno.ELOOP),
        ("b/here", errno.ELOOP),
        ("b/file/x", errno.ENOTDIR),
        ("b/none", errno.ENOENT),
        ("none/file", errno.ENOENT),
        ("../outside/file", errno.EXDEV),
        ("b/../../outside/file", errno.EXDEV),
    ],
)
def test_paths_stay_below_and_follow_nothing(path: str, number: int, tmp_path: Path) -> None:
    make_tree(tmp_path)
    top = os.open(tmp_path / "a", os.O_PATH)
    found = 0
    try:
        os.close(beneath.open_beneath(path, os.O_RDONLY, dir_fd=top))
    except OSError as error:
        found = error.errno if error.filename == path and error.errno else -1
    finally:
        os.close(top)
    assert found == number


@pytest.mark.parametrize("path", ["link", "b/../link"])
def test_a_link_that_has_to_be_a_directory_is_told_as_a_link(path: str, tmp_path: Path) -> None:
    make_tree(tmp_path)
    top = os.open(tmp_path / "a", os.O_PATH)
    try:
        with pytest.raises(OSError, match=r"symbolic links|cross-device") as caught:
            beneath.open_beneath(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=top)
    finally:
        os.close(top)
    assert caught.value.errno in (errno.ELOOP, errno.EXDEV)


# -- repositories ------------------------------------------------------------------------------


@pytest.fixture
def filled(tmp_path: Path) -> tuple[Path, ObjectId]:
    with Repository.init(tmp_path / "repo", insecure=True) as repo:
        writer = repo.create_stream(OCI_LAYER)
        writer.write_external(CONTENT)
        repo.write_stream(writer, "stream", "tag")
        return tmp_path / "repo", repo.ensure_object(CONTENT).id


READS: dict[str, Callable[[Repository, ObjectId], object]] = {
    "open_object": lambda repo, object_id: os.close(repo.open_object(object_id)),
    "read_object": lambda repo, object_id: repo.read_object(object_id),
    "merge_splitstream": lambda repo, _: list(repo.merge_splitstream("stream")),
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("place", ["object", "shard"])
def test_an_object_is_not_read_through_a_link(
    read: str, place: str, filled: tuple[Path, ObjectId], tmp_path: Path
) -> None:
    path, object_id = filled
    there = path / "objects" / (object_id.path if place == "object" else object_id.hex()[:2])
    there.rename(tmp_path / "secret")  # the very content, so that no digest tells
    there.symlink_to(tmp_path / "secret")
    with Repository.open_path(path) as repo:
        with pytest.raises((ComposefsError, OSError), match="symbolic link"):
            READS[read](repo, object_id)
        assert not repo.fsck().ok


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("many", [True, False])
def test_nothing_is_stored_or_taken_for_stored_behind_a_link(
    native: bool, many: bool, filled: tuple[Path, ObjectId], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from composefs_async._repo import batch

    if not native:
        monkeypatch.setattr(batch, "NATIVE", False)
    path, object_id = filled
    shard = path / "objects" / object_id.hex()[:2]
    shard.rename(tmp_path / "away")
    shard.symlink_to(tmp_path / "away")
    before = sorted(os.listdir(tmp_path / "away"))
    with Repository.open_path(path) as repo:
        for content in (CONTENT, *_of_shard(repo, object_id.hex()[:2])):
            with pytest.raises(OSError, match="symbolic links") as caught:
                repo.ensure_objects([content]) if many else repo.ensure_object(content)
            assert str(shard) in str(caught.value.filename)
    assert sorted(os.listdir(tmp_path / "away")) == before


def _of_shard(repo: Repository, shard: str) -> list[bytes]:
    """A content that is not there and belongs into the directory."""
    from composefs_async.fsverity import digest

    contents = (b"new %d" % number for number in range(100_000))
    return [next(each for each in contents if digest(each, repo.algorithm).hex().startswith(shard))]


@pytest.mark.parametrize("name", ["objects", "streams", "streams/refs"])
def test_directories_that_the_owner_has_linked_are_followed(
    name: str, filled: tuple[Path, ObjectId], tmp_path: Path
) -> None:
    path, object_id = filled
    (path / name).rename(tmp_path / "elsewhere")
    (path / name).symlink_to(tmp_path / "elsewhere")
    with Repository.open_path(path) as repo:
        assert repo.read_object(object_id) == CONTENT
        assert repo.has_named_stream("tag")
        assert b"".join(repo.merge_splitstream("refs/tag")) == CONTENT


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", ["objects", "streams", "streams/refs"])
def test_directories_that_somebody_else_has_linked_are_refused(
    name: str, filled: tuple[Path, ObjectId], tmp_path: Path
) -> None:
    path, object_id = filled
    (path / name).rename(tmp_path / "elsewhere")
    (path / name).symlink_to(tmp_path / "elsewhere")
    os.lchown(path / name, 12345, 12345)
    with Repository.open_path(path) as repo:
        with pytest.raises(OSError, match="did not make") as caught:
            repo.read_object(object_id) if name == "objects" else repo.has_named_stream("tag")
        assert caught.value.errno == errno.ELOOP
        assert str(caught.value.filename).startswith(str(path / name))


def test_meta_json_is_not_read_through_a_link(filled: tuple[Path, ObjectId], tmp_path: Path) -> None:
    path, _ = filled
    (path / "meta.json").rename(tmp_path / "secret")
    (path / "meta.json").symlink_to(tmp_path / "secret")
    with pytest.raises(MetadataError, match="symbolic link"):
        Repository.open_path(path)


def test_gc_removes_nothing_behind_a_linked_shard(filled: tuple[Path, ObjectId], tmp_path: Path) -> None:
    path, _ = filled
    with Repository.open_path(path) as repo:
        garbage = repo.ensure_object(b"garbage" * 99).id
        shard = path / "objects" / garbage.hex()[:2]
        shard.rename(tmp_path / "away")
        shard.symlink_to(tmp_path / "away")
        before = sorted(os.listdir(tmp_path / "away"))
        repo.gc()
        assert sorted(os.listdir(tmp_path / "away")) == before


def test_fsck_opens_nothing_outside(filled: tuple[Path, ObjectId], tmp_path: Path) -> None:
    path, _ = filled
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "secret").write_text("secret")
    for number, target in enumerate([tmp_path / "secret", tmp_path / "fifo", "/dev/zero", "../../secret"]):
        (path / f"streams/odd{number}").symlink_to(target)
        (path / "images").mkdir(exist_ok=True)
        (path / f"images/odd{number}").symlink_to(target)
    with Repository.open_path(path) as repo:
        result = repo.fsck()
        assert not result.ok
        assert "secret" not in " ".join(each.cause + each.measured for each in result.findings)
        assert state_of(repo).lifetime.unused
