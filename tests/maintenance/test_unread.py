"""What cannot be read is not damaged: it is left alone and told, whatever else is mended."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from composefs_async._maintenance.fsck import object_reader
from composefs_async._maintenance.gc import shards
from composefs_async._repo import batch
from composefs_async._repo import objects as repo_objects
from composefs_async._repo import state as repo_state
from composefs_async._sys import beneath, errnos
from composefs_async.cli.app import run
from composefs_async.digest import ObjectId
from composefs_async.findings import Finding
from composefs_async.repository import Repository
from composefs_async.results import RepairResult

from .damaging import content, copy, flip, make, objects
from .machine import Machine

UNREAD = [errno.EIO, errno.ESTALE, errno.EACCES, errno.EUCLEAN, errno.ENOSYS, errno.EINTR]
numbers = pytest.mark.parametrize("number", UNREAD, ids=errno.errorcode.get)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    return make(tmp_path_factory.mktemp("whole") / "repo")


@pytest.fixture
def victim(whole: Path, tmp_path: Path) -> Path:
    """A copy."""
    return copy(whole, tmp_path / "victim")


def failing(number: int, function: Callable[..., Any], when: Callable[..., bool], times: int = 1 << 30) -> Any:
    """*function*, which answers with an error the first *times* that *when* says so of its arguments."""
    left = [times]

    def call(*args: Any, **kwargs: Any) -> Any:
        if left[0] and when(*args):
            left[0] -= 1
            raise OSError(number, os.strerror(number), args[0])
        return function(*args, **kwargs)

    return call


def repair(path: Path, *sources: Path, **options: Any) -> RepairResult:
    with Repository.open_path(path) as repo:
        return repo.repair(sources, **options)


def quarantine(path: Path) -> list[str]:
    return [str(each) for each in (path / ".composefs-async").glob("quarantine/*")]


# -- a directory of objects --------------------------------------------------------------------


@pytest.fixture
def unreadable_shard(victim: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], str]:
    """Makes the listing of the first directory of objects fail so many times; gives its path."""
    name = objects(victim)[0].split("/")[1]

    def make_unreadable(number: int, times: int) -> str:
        compare = failing(number, shards.compare, lambda fd, shard, *_: shard == int(name, 16), times)
        monkeypatch.setattr("composefs_async._maintenance.fsck.objects.compare", compare)
        return f"objects/{name}"

    return make_unreadable


@numbers
@pytest.mark.parametrize("times", [1, 1 << 30], ids=["once", "always"])
@pytest.mark.parametrize("dry_run", [False, True], ids=["run", "dry run"])
def test_a_directory_that_cannot_be_read_is_left_alone(
    victim: Path, unreadable_shard: Callable[[int, int], str], number: int, times: int, dry_run: bool
) -> None:
    before = content(victim)
    path = unreadable_shard(number, times)
    result = repair(victim, dry_run=dry_run)
    detail = f"{os.strerror(number)} (os error {number})"
    assert result.before.findings == (Finding("stat-failed", path, detail=detail),)
    assert [each.unread for each in result.before.findings] == [True]
    assert (result.ok, result.actions, result.quarantine) == (False, (), "")
    assert [(each.path, each.unread) for each in result.unrepaired] == [(path, True)]
    assert (content(victim), quarantine(victim)) == (before, [])


@pytest.mark.parametrize("arguments", [[], ["--repair"], ["--repair", "-n"]], ids=" ".join)
def test_the_exit_code_says_that_it_is_not_known(
    victim: Path, unreadable_shard: Callable[[int, int], str], capsys: Any, arguments: list[str]
) -> None:
    path = unreadable_shard(errno.EIO, 1 << 30)
    assert run(["--repo", str(victim), "fsck", *arguments]) == 2
    assert f"{path}: Input/output error" in capsys.readouterr().out


def test_what_else_is_damaged_is_mended(victim: Path, whole: Path, unreadable_shard: Callable[[int, int], str]) -> None:
    path = unreadable_shard(errno.EIO, 1 << 30)
    other = next(name for name in objects(victim) if not name.startswith(path))
    flip(victim / other)
    result = repair(victim, whole)
    assert [(each.path, each.action) for each in result.actions] == [(other, "replaced")]
    assert [each.path for each in result.unrepaired] == [path]
    assert content(victim) == content(whole)


# -- an object ---------------------------------------------------------------------------------


@pytest.fixture
def unreadable_object(victim: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int, int], str]:
    """Makes opening or reading one object fail so many times; gives its path."""
    for module in (object_reader, batch):
        monkeypatch.setattr(module, "NATIVE", False)
    monkeypatch.setattr(beneath, "_refused", {beneath._OPENAT2})
    name = objects(victim)[0]
    inode = (victim / name).stat().st_ino

    def make_unreadable(call: str, number: int, times: int) -> str:
        failed = [0]

        def is_it(file: Any, *_: Any) -> bool:
            found = os.fstat(file).st_ino == inode if isinstance(file, int) else file == os.path.basename(name)
            failed[0] += found
            return found and failed[0] <= times

        for each in {"open": ["open"], "read": ["pread", "readv"]}[call]:
            monkeypatch.setattr(os, each, failing(number, getattr(os, each), is_it))
        return name

    return make_unreadable


@numbers
@pytest.mark.parametrize("call", ["open", "read"])
def test_an_object_that_cannot_be_read_for_a_moment_is_left_alone_though_there_is_a_source(
    victim: Path, whole: Path, unreadable_object: Callable[[str, int, int], str], call: str, number: int
) -> None:
    before = content(victim)
    name = unreadable_object(call, number, 1)
    result = repair(victim, whole)
    assert name in {each.path for each in result.before.unread}
    assert (result.ok, result.actions, quarantine(victim)) == (False, (), [])
    assert content(victim) == before
    assert repair(victim, whole).ok


@numbers
def test_an_object_that_cannot_be_opened_is_left_alone(
    victim: Path, whole: Path, unreadable_object: Callable[[str, int, int], str], number: int
) -> None:
    name = unreadable_object("open", number, 1 << 30)
    result = repair(victim, whole)
    assert name in {each.path for each in result.unrepaired if each.unread}
    assert (result.actions, quarantine(victim)) == ((), [])


def test_an_object_with_bad_blocks_is_replaced_by_the_right_content_and_kept(
    victim: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel answers so where fs-verity finds other content, too: only a copy that is right may replace it."""
    name, machine = objects(victim)[0], Machine(monkeypatch)
    machine.spoil(victim / name)
    before = content(victim)
    assert (repair(victim).actions, content(victim)) == ((), before)
    result = repair(victim, whole)
    assert [(each.path, each.action) for each in result.actions] == [(name, "replaced")]
    assert (victim / result.quarantine / name).read_bytes() == (victim / name).read_bytes()


@numbers
def test_whether_something_is_there_is_not_guessed(
    victim: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A question that cannot be answered is no "no": the object is not missing, and references do not dangle."""
    question = failing(number, repo_state.open_beneath, lambda path, flags: flags == os.O_PATH)
    monkeypatch.setattr(repo_state, "open_beneath", question)
    before = content(victim)
    assert (repair(victim, whole).actions, quarantine(victim)) == ((), [])
    with pytest.raises(OSError, match=os.strerror(number)) as caught, Repository.open_path(victim) as repo:
        repo.prune_references(dangling=True)
    assert caught.value.filename.startswith(f"{victim}/objects/")
    assert content(victim) == before


@numbers
def test_only_knowledge_counts(number: int) -> None:
    assert (errnos.is_unread(number), errnos.is_absent(number)) == (True, False)
    for known in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO):
        assert not errnos.is_unread(known)


# -- collecting garbage ------------------------------------------------------------------------


@numbers
def test_gc_deletes_nothing_when_something_could_not_be_read(
    victim: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, number: int
) -> None:
    with Repository.open_path(victim) as repo:
        repo.ensure_object(b"garbage")
    before, name = content(victim), objects(victim)[0]

    def read_object(state: Any, object_id: ObjectId, **options: Any) -> bytes:
        raise OSError(number, os.strerror(number), "somewhere")

    monkeypatch.setattr(repo_objects, "read_object", read_object)
    assert run(["--repo", str(victim), "gc"]) == (11 if number == errno.EACCES else 1)
    error = capsys.readouterr().err
    assert f"{victim}/objects/{name[8:10]}"[:-2] in error
    assert f"could not be read: {os.strerror(number)}\n" in error
    assert content(victim) == before


# -- the quarantine ----------------------------------------------------------------------------


def test_what_is_right_in_the_quarantine_comes_back(victim: Path, whole: Path) -> None:
    """As repairs of before moved a directory that they could not list."""
    name = objects(victim)[0]
    kept = victim / ".composefs-async/quarantine/20260101T000000Z"
    (kept / Path(name).parent.parent).mkdir(parents=True)
    (victim / name).parent.rename(kept / Path(name).parent)
    foretold = repair(victim, dry_run=True)
    result = repair(victim)
    assert result.actions == foretold.actions
    assert {each.path: each.source for each in result.actions}[name] == "the quarantine"
    assert (result.ok, content(victim)) == (True, content(whole))


def test_what_is_wrong_in_the_quarantine_stays_there(victim: Path, whole: Path) -> None:
    name = objects(victim)[0]
    flip(victim / name)
    assert repair(victim, whole).ok
    (victim / name).unlink()
    before = content(victim)
    assert repair(victim).actions == ()
    assert content(victim) == before
