"""Errors of the system say which file of which repository they are about, whatever handle they were met through."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from composefs_async.digest import ObjectId
from composefs_async.errors import IntegrityError, MetadataError
from composefs_async.repository import Repository
from composefs_async.splitstream import OCI_LAYER

CONTENT = b"content " * 100

Operation = Callable[[Repository, ObjectId], object]


def _loop(path: Path) -> None:
    """Put something in its place that nobody can walk through, root included."""
    if path.is_dir():
        path.rename(path.with_name(path.name + ".away"))
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def _stream(repo: Repository) -> ObjectId:
    """Named ``stream``, and an image with the same content."""
    writer = repo.create_stream(OCI_LAYER)
    writer.write_inline(CONTENT)
    stream_id = repo.write_stream(writer, "stream", "mine")
    repo.write_image(repo.read_object(stream_id), "mine")
    return stream_id


READING: dict[str, Operation] = {
    "open_object": lambda repo, object_id: repo.open_object(object_id),
    "read_object": lambda repo, object_id: repo.read_object(object_id),
    "has_stream": lambda repo, _: repo.has_stream("stream"),
    "has_named_stream": lambda repo, _: repo.has_named_stream("mine"),
    "open_stream": lambda repo, _: repo.open_stream("stream"),
    "has_image": lambda repo, _: repo.has_image("mine"),
    "open_image": lambda repo, _: repo.open_image("mine"),
}


@pytest.mark.parametrize("case", READING)
def test_object_that_cannot_be_reached_is_not_taken_for_absent(case: str, repo: Repository, tmp_path: Path) -> None:
    object_id = _stream(repo)
    place = tmp_path / "repo/objects" / object_id.path
    _loop(place.parent)
    with pytest.raises(OSError, match="symbolic links") as caught:
        READING[case](repo, object_id)
    assert (caught.value.errno, caught.value.filename) == (errno.ELOOP, str(place))


STORING: dict[str, Callable[[Repository], object]] = {
    "one": lambda repo: repo.ensure_object(CONTENT),
    "many": lambda repo: repo.ensure_objects([CONTENT]),
}


@pytest.mark.parametrize("case", STORING)
def test_object_that_cannot_be_stored_is_named(case: str, repo: Repository, tmp_path: Path) -> None:
    place = tmp_path / "repo/objects" / repo.ensure_object(CONTENT).id.path
    _loop(place.parent)
    with pytest.raises(OSError, match="symbolic links") as caught:
        STORING[case](repo)
    assert caught.value.filename == str(place)


NAMING: dict[str, tuple[str, Operation, str]] = {
    "has_stream": ("streams", lambda repo, _: repo.has_stream("stream"), "streams"),
    "named_streams": ("streams/refs", lambda repo, _: list(repo.named_streams()), "streams/refs"),
    "name_stream": ("streams/refs", lambda repo, _: repo.name_stream("stream", "new"), "streams/refs"),
    "register_stream": ("streams", lambda repo, object_id: repo.register_stream(object_id, "new"), "streams"),
}


@pytest.mark.parametrize("case", NAMING)
def test_directory_of_names_that_cannot_be_read_is_named(case: str, repo: Repository, tmp_path: Path) -> None:
    directory, operation, named = NAMING[case]
    object_id = _stream(repo)
    _loop(tmp_path / "repo" / directory)
    with pytest.raises(OSError, match=r"symbolic links|Not a directory") as caught:
        operation(repo, object_id)
    assert caught.value.filename == str(tmp_path / "repo" / named)


@pytest.mark.parametrize("name", ["meta.json", "objects"])
def test_repository_that_cannot_be_read_is_named(name: str, repo: Repository, tmp_path: Path) -> None:
    repo.close()
    _loop(tmp_path / "repo" / name)
    with pytest.raises(OSError, match="symbolic links") as caught, Repository.open_path(tmp_path / "repo") as opened:
        opened.ensure_object(b"")
    assert (caught.value.errno, caught.value.filename) == (errno.ELOOP, str(tmp_path / "repo" / name))


def test_place_is_named_once_below_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Repository.init("repo", insecure=True) as repo:
        place = Path("repo/objects") / repo.ensure_object(CONTENT).id.path
        _loop(place.parent)
        for store in STORING.values():
            with pytest.raises(OSError, match="symbolic links") as caught:
                store(repo)
            assert caught.value.filename == str(place)


# -- what is no file ---------------------------------------------------------------------------


def _pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [_pipe, Path.mkdir], ids=["pipe", "directory"])
def test_object_that_is_no_file_is_corrupt(make: Callable[[Path], None], repo: Repository, tmp_path: Path) -> None:
    object_id = repo.ensure_object(CONTENT).id
    path = tmp_path / "repo/objects" / object_id.path
    path.unlink()
    make(path)
    for read in (repo.open_object, repo.read_object):
        with pytest.raises(IntegrityError, match="is no regular file"):
            read(object_id)


@pytest.mark.parametrize("make", [_pipe, Path.mkdir], ids=["pipe", "directory"])
def test_metadata_that_is_no_file_is_refused(make: Callable[[Path], None], repo: Repository, tmp_path: Path) -> None:
    repo.close()
    path = tmp_path / "repo/meta.json"
    path.unlink()
    make(path)
    with pytest.raises(MetadataError, match="it is no regular file") as caught:
        Repository.open_path(tmp_path / "repo")
    assert caught.value.path == str(path)
