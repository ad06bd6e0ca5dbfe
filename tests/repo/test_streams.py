from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from composefs_async import fsverity
from composefs_async._repo import streams
from composefs_async._sys import files
from composefs_async.digest import Algorithm, ObjectId
from composefs_async.errors import (
    AlgorithmMismatchError,
    InvalidNameError,
    ObjectNotFoundError,
    RepositoryInUseError,
    SplitstreamError,
    StreamNotFoundError,
)
from composefs_async.repository import Repository, state_of
from composefs_async.splitstream import OCI_BLOB, OCI_LAYER, SplitstreamWriter

BAD_NAMES = ["", ".", "..", "a/b", "../x", "/x", "refs", "a\0b", "n" * 256]
BAD_REFERENCES = ["", ".", "..", "a//b", "/a", "a/", "a/../b", "../../x", "a/.", "a\0b", "n" * 256]


def filled(repo: Repository, inline: bytes = b"head") -> SplitstreamWriter:
    writer = repo.create_stream(OCI_LAYER)
    writer.write_inline(inline)
    writer.write_external(b"x" * 100)
    writer.write_external_parallel(b"y" * 100)
    return writer


def content(repo: Repository, name: str) -> bytes:
    return b"".join(repo.merge_splitstream(name))


def links(repo: Repository) -> dict[str, str]:
    return {
        str(path.relative_to(repo.path)): os.readlink(path) for path in Path(repo.path).rglob("*") if path.is_symlink()
    }


def test_a_stream_is_published_under_its_name_and_references(repo: Repository) -> None:
    object_id = repo.write_stream(filled(repo), "name", "a/b")
    repo.name_stream("name", "c")
    assert links(repo) == {
        "streams/name": f"../objects/{object_id.path}",
        "streams/refs/a/b": "../../name",
        "streams/refs/c": "../name",
    }
    assert repo.has_stream("name") == repo.has_stream("refs/a/b") == object_id
    assert content(repo, "name") == content(repo, "refs/c") == b"head" + b"x" * 100 + b"y" * 100
    assert [repo.has_named_stream(reference) for reference in ("a/b", "c", "d", "a")] == [True, True, False, False]
    assert repo.named_streams() == [("a/b", "name"), ("c", "name")]
    assert repo.named_streams("a") == [("b", "name")]


def test_references_are_removed_once(repo: Repository) -> None:
    repo.write_stream(filled(repo), "name", "a/b")
    assert [repo.unname_stream("a/b"), repo.unname_stream("a/b"), repo.unname_stream("x/y")] == [True, False, False]
    assert repo.named_streams() == []
    assert repo.has_stream("name")


def test_a_name_moves_to_another_stream_atomically(repo: Repository) -> None:
    repo.write_stream(filled(repo), "name")
    second = repo.write_stream(filled(repo, b"other"), "name")
    assert repo.has_stream("name") == second
    assert [path.name for path in Path(repo.path).iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("operation", ["write_stream", "ensure_stream"])
def test_no_collection_comes_between_a_stream_and_its_name(
    repo: Repository, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another thread of the same handle: whoever writes is not to lose what he has stored already."""

    def collect() -> None:
        with contextlib.suppress(RepositoryInUseError):
            repo.gc(timeout=0)

    def interrupted(publish: Callable[..., object], *arguments: object) -> None:
        thread = threading.Thread(target=collect)
        thread.start()
        thread.join()
        publish(*arguments)

    if operation == "ensure_stream":
        repo.write_stream(filled(repo), "name")
    writer = filled(repo)
    for name in ("register_stream", "name_stream"):
        monkeypatch.setattr(streams, name, partial(interrupted, getattr(streams, name)))
    if operation == "ensure_stream":
        repo.ensure_stream("name", OCI_LAYER, lambda writer: None, "mine")
    else:
        repo.write_stream(writer, "name", "mine")
    assert content(repo, "refs/mine") == b"head" + b"x" * 100 + b"y" * 100


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_stream_name_that_is_none_is_refused_before_the_writer_is_finished(repo: Repository, name: str) -> None:
    writer = filled(repo)
    with pytest.raises(InvalidNameError):
        repo.write_stream(writer, name)
    assert links(repo) == {}
    repo.write_stream(writer, "good")


@pytest.mark.parametrize("reference", BAD_REFERENCES)
def test_a_reference_that_would_leave_its_directory_is_refused(repo: Repository, reference: str) -> None:
    object_id = repo.write_stream(filled(repo), "name")
    before = links(repo)
    for publish in (
        lambda: repo.write_stream(filled(repo), "other", reference),
        lambda: repo.register_stream(object_id, "other", reference),
        lambda: repo.name_stream("name", reference),
        lambda: repo.unname_stream(reference),
    ):
        with pytest.raises(InvalidNameError):
            publish()
    assert links(repo) == before


@pytest.mark.parametrize("reference", BAD_REFERENCES)
def test_nothing_outside_its_directory_is_looked_at(repo: Repository, reference: str) -> None:
    for look in (
        repo.has_named_stream,
        lambda reference: repo.has_stream(f"refs/{reference}"),
        lambda reference: repo.open_stream(f"refs/{reference}"),
        lambda reference: list(repo.merge_splitstream(f"refs/{reference}")),
        lambda reference: repo.named_streams(reference or ".."),
        lambda reference: repo.named_images(reference or ".."),
    ):
        with pytest.raises(InvalidNameError):
            look(reference)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_nothing_outside_streams_is_looked_at(repo: Repository, name: str) -> None:
    for look in (repo.has_stream, repo.open_stream, lambda name: list(repo.merge_splitstream(name))):
        with pytest.raises(InvalidNameError):
            look(name)  # type: ignore[operator]


def test_a_reference_to_nothing_is_refused(repo: Repository) -> None:
    with pytest.raises(StreamNotFoundError, match="missing"):
        repo.name_stream("missing", "a")
    with pytest.raises(ObjectNotFoundError):
        repo.register_stream(fsverity.digest(b"missing", repo.algorithm), "name")
    with pytest.raises(AlgorithmMismatchError):
        repo.register_stream(ObjectId(bytes(96 - repo.algorithm.digest_size)), "name")
    assert links(repo) == {}


def test_opening_what_is_not_there_is_an_error(repo: Repository) -> None:
    for name in ("missing", "refs/missing"):
        with pytest.raises(StreamNotFoundError, match=name):
            repo.open_stream(name)
    with pytest.raises(InvalidNameError):
        repo.open_stream("../meta.json")


def test_a_stream_whose_object_is_gone_is_not_there(repo: Repository) -> None:
    object_id = repo.write_stream(filled(repo), "name", "a")
    (Path(repo.path) / "objects" / object_id.path).unlink()
    assert repo.has_stream("name") is None
    assert not repo.has_named_stream("a")
    with pytest.raises(ObjectNotFoundError):
        repo.open_stream("name")


def test_another_content_type_than_asked_for_is_an_error(repo: Repository) -> None:
    repo.write_stream(filled(repo), "name")
    with repo.open_stream("name", content_type=OCI_LAYER) as reader:
        assert reader.stream_size == 204
    with pytest.raises(SplitstreamError, match="name"):
        repo.open_stream("name", content_type=OCI_BLOB)


def test_ensure_stream_fills_once_and_names_each_time(repo: Repository) -> None:
    calls = []

    def fill(writer: SplitstreamWriter) -> None:
        calls.append(1)
        writer.write_inline(b"content")

    first = repo.ensure_stream("name", OCI_BLOB, fill, "a")
    assert repo.ensure_stream("name", OCI_BLOB, fill, "b") == first
    assert calls == [1]
    assert repo.named_streams() == [("a", "name"), ("b", "name")]


def test_names_appear_only_after_a_flush_and_are_made_durable_after(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, calls = filled(repo), []
    real_symlink, real_sync, real_fsync = os.symlink, files.syncfs, os.fsync
    monkeypatch.setattr(os, "symlink", lambda *a, **k: (calls.append(f"symlink {a[1]}"), real_symlink(*a, **k)))
    monkeypatch.setattr(files, "syncfs", lambda fd: (calls.append("syncfs"), real_sync(fd)))
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), real_fsync(fd)))
    repo.write_stream(writer, "name", "a")
    assert calls[:3] == ["syncfs", "symlink streams/name", "symlink streams/refs/a"]
    assert set(calls[3:]) == {"fsync"}


def test_flushes_asked_for_while_one_runs_share_the_next(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = state_of(repo).syncs
    running, go = threading.Event(), threading.Event()

    def slow(fd: int) -> None:
        running.set()
        go.wait(10)

    monkeypatch.setattr(files, "syncfs", slow)
    threads = [threading.Thread(target=repo.sync) for _ in range(6)]
    threads[0].start()
    running.wait(10)
    for thread in threads[1:]:
        thread.start()
    while sum(thread.is_alive() for thread in threads) < 6 or len(syncs._changed._waiters) < 5:  # type: ignore[attr-defined]
        pass
    go.set()
    for thread in threads:
        thread.join()
    assert syncs.count == 2


def test_a_flush_that_fails_is_told_to_everybody_who_waited_for_it(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "syncfs", fail)
    with pytest.raises(OSError, match="Input/output"):
        repo.write_stream(filled(repo), "name")
    assert links(repo) == {}
    monkeypatch.undo()
    repo.sync()


def test_a_target_that_is_no_object_is_no_stream(repo: Repository) -> None:
    repo.write_stream(filled(repo), "name")
    other = next(algorithm for algorithm in Algorithm if algorithm is not repo.algorithm)
    foreign = Path(repo.path) / "objects" / fsverity.digest(b"foreign", other).path
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_bytes(b"foreign")
    for target in ("../meta.json", "nowhere", "../objects/ab/cd", f"../objects/{foreign.parent.name}/{foreign.name}"):
        (Path(repo.path) / "streams/odd").unlink(missing_ok=True)
        (Path(repo.path) / "streams/odd").symlink_to(target)
        assert repo.has_stream("odd") is None
        with pytest.raises(StreamNotFoundError):
            repo.open_stream("odd")
    assert ObjectId.from_path(os.readlink(Path(repo.path) / "streams/name")) == repo.has_stream("name")
