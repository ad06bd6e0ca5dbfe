"""Starting over with the objects of a repository."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anyio
import pytest

from composefs_async._repo import meta_file
from composefs_async._repo.metadata import ErofsFormats
from composefs_async._sys import files
from composefs_async.digest import Algorithm
from composefs_async.errors import MetadataError, RepositoryInUseError, RepositoryNotFoundError, VerityMissingError
from composefs_async.oci.importing.pull import pull
from composefs_async.repository import Repository

from ..maintenance.generations import PLATFORM, Image, before_january, entries, february, january

pytestmark = pytest.mark.usefixtures("no_leaks")

SHA256 = Algorithm.SHA256


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image.make(tmp_path / "layout")


def take(path: Path, image: Image) -> int:
    """Pull *image*; returns how many objects of its layers had to be stored."""
    with Repository.open_path(path) as repo:
        result = anyio.run(partial(pull, repo, image.reference, tag="app", platform=PLATFORM))
        return result.stats.objects_stored


def current(path: Path, image: Image) -> None:
    Repository.init(path, algorithm=SHA256, insecure=True).close()
    take(path, image)


def objects(path: Path) -> dict[str, str]:
    return {name: what for name, what in entries(path).items() if name.startswith("objects/")}


@pytest.mark.parametrize(
    "make",
    [
        current,
        lambda path, image: january(path, SHA256, image, "a/b/c"),
        lambda path, image: february(path, SHA256, image),
        lambda path, image: before_january(path, SHA256),
        lambda path, image: (path / "objects").mkdir(parents=True),
        lambda path, image: path.mkdir(),
    ],
    ids=["current", "2026-01", "2026-02", "before 2026-01", "no objects", "nothing"],
)
def test_names_go_objects_stay_and_another_layout_is_possible(
    make: Callable[[Path, Image], object], tmp_path: Path, image: Image
) -> None:
    path = tmp_path / "repo"
    make(path, image)
    before = objects(path)
    with Repository.reset_metadata(path, algorithm=SHA256, erofs_version=2, insecure=True) as repo:
        assert (repo.metadata.formats, repo.secure, repo.named_streams()) == (ErofsFormats(2), False, [])
    assert entries(path) == before
    assert set(os.listdir(path)) <= {"meta.json", "objects"}


def test_what_is_imported_again_is_not_stored_again(tmp_path: Path, image: Image) -> None:
    current(tmp_path / "repo", image)
    Repository.reset_metadata(tmp_path / "repo", algorithm=SHA256, insecure=True).close()
    assert take(tmp_path / "repo", image) == 0


def test_a_damaged_meta_json_and_what_is_no_link_do_not_hold_it_up(tmp_path: Path, image: Image) -> None:
    path, outside = tmp_path / "repo", tmp_path / "outside"
    current(path, image)
    outside.mkdir()
    (outside / "precious").touch()
    (path / "meta.json").write_bytes(b"{")
    (path / "streams/refs/deep/er").mkdir(parents=True)
    (path / "streams/refs/deep/er/file").touch()
    (path / "images/refs").mkdir(exist_ok=True)
    os.symlink(outside, path / "images/refs/outside")
    Repository.reset_metadata(path, algorithm=SHA256, insecure=True).close()
    assert sorted(os.listdir(path)) == ["meta.json", "objects"]
    assert os.listdir(outside) == ["precious"]


def test_categories_that_are_links_are_removed_and_not_followed(tmp_path: Path, image: Image) -> None:
    path, outside = tmp_path / "repo", tmp_path / "outside"
    january(path, SHA256, image)
    os.rename(path / "streams", outside)
    os.symlink(outside, path / "streams")
    before = sorted(os.listdir(outside))
    Repository.reset_metadata(path, algorithm=SHA256, insecure=True).close()
    assert sorted(os.listdir(path)) == ["meta.json", "objects"]
    assert sorted(os.listdir(outside)) == before


@pytest.mark.parametrize(
    ("options", "error"),
    [({"algorithm": Algorithm.SHA512, "insecure": True}, MetadataError), ({"algorithm": SHA256}, VerityMissingError)],
    ids=["foreign algorithm", "unprotected objects"],
)
def test_what_would_make_objects_unreadable_is_refused_before_anything_changes(
    options: dict[str, object], error: type[Exception], tmp_path: Path, image: Image
) -> None:
    path = tmp_path / "repo"
    current(path, image)
    before, meta = entries(path), (path / "meta.json").read_bytes()
    with pytest.raises(error):
        Repository.reset_metadata(path, **options)  # type: ignore[arg-type]
    assert (entries(path), (path / "meta.json").read_bytes()) == (before, meta)


def test_it_does_not_make_a_repository(tmp_path: Path) -> None:
    with pytest.raises(RepositoryNotFoundError):
        Repository.reset_metadata(tmp_path / "repo")
    assert os.listdir(tmp_path) == []


def test_another_handle_even_of_this_process_keeps_it_away_for_a_bounded_time(tmp_path: Path, image: Image) -> None:
    path = tmp_path / "repo"
    current(path, image)
    before = entries(path)
    with Repository.open_path(path) as repo:
        with pytest.raises(RepositoryInUseError, match="resetting"):
            Repository.reset_metadata(path, algorithm=SHA256, insecure=True, timeout=0)
        assert repo.has_named_stream("oci/app")
    assert entries(path) == before


class _CrashError(Exception):
    pass


def test_a_crash_leaves_names_that_lead_somewhere_and_a_second_run_ends_the_work(
    tmp_path: Path, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before each of its steps in turn."""
    steps = [(os, "unlink"), (os, "rmdir"), (files, "syncfs"), (meta_file, "write")]
    step, left = 0, -1
    while left < 0:
        path = tmp_path / f"repo{step}"
        february(path, SHA256, image)
        Repository.upgrade(path)
        left = step

        def counted(function: Callable[..., object], *arguments: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise _CrashError
            return function(*arguments, **options)

        with monkeypatch.context() as patch:
            for module, name in steps:
                patch.setattr(module, name, partial(counted, getattr(module, name)))
            with contextlib.suppress(_CrashError):
                Repository.reset_metadata(path, algorithm=SHA256, insecure=True).close()
        with Repository.open_path(path) as repo:
            assert [name for name, _ in repo.named_streams() if not repo.has_named_stream(name)] == []
        Repository.reset_metadata(path, algorithm=SHA256, insecure=True).close()
        assert sorted(os.listdir(path)) == ["meta.json", "objects"]
        step += 1
    assert step > 10


@pytest.mark.anyio
async def test_the_async_form_does_the_same(tmp_path: Path, image: Image) -> None:
    january(tmp_path / "repo", SHA256, image)
    async with await Repository.reset_metadata_async(tmp_path / "repo", algorithm=SHA256, insecure=True) as repo:
        assert await repo.named_streams_async() == []


def test_an_error_of_the_system_names_the_file(tmp_path: Path, image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    january(tmp_path / "repo", SHA256, image)

    def refuse(path: str, *, dir_fd: int) -> None:
        raise OSError(errno.EIO, "broken", path)

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(OSError, match="broken") as caught:
        Repository.reset_metadata(tmp_path / "repo", algorithm=SHA256, insecure=True)
    assert caught.value.filename == str(tmp_path / "repo/streams/refs/app")
