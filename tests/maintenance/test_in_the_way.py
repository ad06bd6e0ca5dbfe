"""What stands in the way of names: nothing is deleted as long as there may be references that nobody sees."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from composefs_async.errors import ReachUnknownError
from composefs_async.repository import Repository

from .garbage import everything, image, stream

Put = Callable[[Path, Path], object]


def link_to_it(path: Path, away: Path) -> None:
    if path.exists():
        path.rename(away)
    else:
        away.mkdir()
    path.symlink_to(away)


def relative_link(path: Path, away: Path) -> None:
    link_to_it(path, away)
    path.unlink()
    path.symlink_to(os.path.relpath(away, path.parent))


def link_that_leads_nowhere(path: Path, away: Path) -> None:
    link_to_it(path, away)
    away.rename(away.with_name("unmounted"))


def link_to_itself(path: Path, away: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.symlink_to(path.name)


def fifo(path: Path, away: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.mkfifo(path)


def plain_file(path: Path, away: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.write_text("x")


WAYS: list[Put] = [link_to_it, relative_link, link_that_leads_nowhere, link_to_itself, fifo, plain_file]
PLACES = [
    "streams",
    "streams/refs",
    "streams/refs/oci",
    "streams/refs/oci/deep",
    "images",
    "images/refs",
    "images/refs/a",
]


def fill(repo: Repository) -> None:
    stream(repo, "one", ["a"], reference="oci/tag")
    stream(repo, "two", ["b"], reference="oci/deep/tag")
    stream(repo, "three", ["c"], reference="plain")
    image(repo, ["d"], "a/picture")
    stream(repo, "garbage", ["e"])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("put", WAYS, ids=lambda put: put.__name__)
def test_nothing_is_deleted(put: Put, place: str, empty: Repository, tmp_path: Path) -> None:
    fill(empty)
    put(Path(empty.path, place), tmp_path / "away")
    before = everything(empty)
    for dry_run in (True, False):
        with pytest.raises(ReachUnknownError, match=place):
            empty.gc(dry_run=dry_run)
    with pytest.raises(ReachUnknownError, match=place):
        empty.usage()
    assert everything(empty) == before


@pytest.mark.parametrize("category", ["streams", "images"])
@pytest.mark.parametrize("put", [fifo, plain_file], ids=lambda put: put.__name__)
def test_nothing_is_deleted_where_a_name_is_no_link(put: Put, category: str, empty: Repository, tmp_path: Path) -> None:
    fill(empty)
    name = "one" if category == "streams" else empty.named_images()[0][1]
    path = Path(empty.path, category, name)
    path.unlink()
    put(path, tmp_path)
    before = everything(empty)
    with pytest.raises(ReachUnknownError, match=name):
        empty.gc()
    assert everything(empty) == before


def test_nothing_is_deleted_where_an_additional_root_is_no_link(empty: Repository) -> None:
    fill(empty)
    Path(empty.path, "streams/root").mkdir()
    with pytest.raises(ReachUnknownError, match="streams/root"):
        empty.gc(["root"])


def test_nothing_is_deleted_when_something_comes_in_the_way_meanwhile(empty: Repository, tmp_path: Path) -> None:
    fill(empty)
    before = everything(empty)

    def report(event: object) -> None:
        if not (tmp_path / "away").exists():
            Path(empty.path, "streams/refs").rename(tmp_path / "away")
            Path(empty.path, "streams/refs").symlink_to(tmp_path / "away")

    with pytest.raises(ReachUnknownError, match="streams/refs"):
        empty.gc(progress=report)
    Path(empty.path, "streams/refs").unlink()
    (tmp_path / "away").rename(Path(empty.path, "streams/refs"))
    assert everything(empty) == before


@pytest.mark.parametrize("put", [link_to_it, fifo, plain_file], ids=lambda put: put.__name__)
def test_nothing_is_deleted_where_the_directory_of_a_stream_is_none(
    put: Put, empty: Repository, tmp_path: Path
) -> None:
    stream_id = stream(empty, "one", ["a", "b"], reference="tag")
    put(Path(empty.path, "objects", stream_id.hex()[:2]), tmp_path / "away")
    before = everything(empty)
    with pytest.raises((ReachUnknownError, OSError)):
        empty.gc()
    assert everything(empty) == before


@pytest.mark.parametrize("put", [link_to_it, fifo], ids=lambda put: put.__name__)
def test_nothing_is_deleted_where_a_stream_is_no_file(put: Put, empty: Repository, tmp_path: Path) -> None:
    stream_id = stream(empty, "one", ["a", "b"], reference="tag")
    path = Path(empty.path, "objects", stream_id.path)
    if put is fifo:
        path.unlink()
    put(path, tmp_path / "away")
    before = everything(empty)
    with pytest.raises(ReachUnknownError, match=stream_id.path):
        empty.gc()
    assert everything(empty) == before


# -- repair ------------------------------------------------------------------------------------


def foreign(directory: Path) -> dict[str, bytes | str]:
    """A directory that has nothing to do with the repository, and all that is in it."""
    (directory / "refs/deep").mkdir(parents=True)
    for name in ("file", "refs/file", "refs/deep/file"):
        (directory / name).write_text(name)
    (directory / "link").symlink_to("file")
    (directory / ("ab" * 20)).write_text("x")
    return listing(directory)


def listing(directory: Path) -> dict[str, bytes | str]:
    return {
        str(path.relative_to(directory)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in directory.rglob("*")
        if path.is_symlink() or path.is_file()
    }


LINKED = [*PLACES, "objects", ".composefs-async", ".composefs-async/quarantine", ".composefs-async/leases"]


@pytest.mark.parametrize("place", LINKED)
def test_repair_moves_nothing_out_of_another_directory(place: str, empty: Repository, tmp_path: Path) -> None:
    fill(empty)
    Path(empty.path, "streams/not-a-link").write_text("x")  # something to be put aside
    before = foreign(tmp_path / "other")
    path = Path(empty.path, place)
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        path.rename(tmp_path / "away")
    path.symlink_to(tmp_path / "other")
    target = listing(tmp_path / "away") if (tmp_path / "away").exists() else {}
    foretold = None
    if place != "objects" and not place.startswith(".composefs"):
        foretold = empty.repair(dry_run=True)
        assert not foretold.after.ok
        result = empty.repair()
        assert [each.path for each in result.actions] == [each.path for each in foretold.actions]
        assert place in [each.path for each in result.after.errors] or "refs" in place
    else:
        try:
            empty.repair()
        except OSError as error:
            assert error.filename is not None  # noqa: PT017
    assert listing(tmp_path / "other") == before
    assert path.is_symlink()
    if (tmp_path / "away").exists():
        assert listing(tmp_path / "away") == target


def test_repair_of_a_linked_shard_leaves_what_is_behind_the_link(empty: Repository, tmp_path: Path) -> None:
    stream_id = stream(empty, "one", ["a"], reference="tag")
    shard = Path(empty.path, "objects", stream_id.hex()[:2])
    link_to_it(shard, tmp_path / "away")
    before = listing(tmp_path / "away")
    empty.repair()
    assert listing(tmp_path / "away") == before
