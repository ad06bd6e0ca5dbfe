"""Garbage collection of the same handle, by another thread, in the middle of an operation that names something."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from anyio import create_task_group

from composefs_async._maintenance.gc import collect
from composefs_async._repo import publish as names
from composefs_async.digest import Algorithm
from composefs_async.errors import RepositoryInUseError
from composefs_async.oci import catalogue, pull
from composefs_async.repository import Repository
from composefs_async.results import GcResult

from ..maintenance.crashing import PLATFORM, Contents, Images, make, problems
from ..maintenance.garbage import image_bytes, links, stream, write

CONTENTS = [f"file {number}" for number in range(30)]
NAMING: dict[str, Callable[[Repository], object]] = {
    "write_image": lambda repo: repo.write_image(image_bytes(repo, []), "mine"),
    "write_stream": lambda repo: repo.write_stream(write(repo, [])[0], "stream", "mine"),
    "register_stream": lambda repo: repo.register_stream(repo.ensure_object(b"stream").id, "stream", "mine"),
    "name_stream": lambda repo: repo.name_stream("there", "mine"),
    "ensure_stream": lambda repo: repo.ensure_stream("there", 0, lambda writer: None, "mine"),
    "add_reference": lambda repo: repo.add_reference("streams", "mine", "there"),
    "rename_reference": lambda repo: repo.rename_reference("streams", "old", "mine"),
}


@pytest.mark.parametrize("name", NAMING)
def test_gc_takes_nothing_that_is_about_to_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    publish = names.publish

    def collect(repo: Repository) -> None:
        with suppress(RepositoryInUseError):
            repo.gc(timeout=0)

    with Repository.init(tmp_path / "repo", algorithm=Algorithm.SHA256, insecure=True) as repo:
        stream(repo, "there", reference="old" if name == "rename_reference" else None)

        def interrupted(*args: Any, **kwargs: Any) -> None:
            thread = threading.Thread(target=collect, args=(repo,))
            thread.start()
            thread.join()
            publish(*args, **kwargs)

        monkeypatch.setattr(names, "publish", interrupted)
        NAMING[name](repo)
    found = Contents.read(tmp_path / "repo")
    assert [reference.rpartition("/")[2] for reference in found.names] == ["mine"]


@pytest.mark.anyio
@pytest.mark.usefixtures("without_flushes")
async def test_gc_and_pulls_of_one_handle_go_on_together(tmp_path: Path) -> None:
    images = Images(tmp_path / "images")

    async def bring(name: str, *tags: str) -> None:
        for tag in tags:
            await pull(repo, f"oci:{images.directory}:{name}", tag=tag, platform=PLATFORM)
            if tag.startswith("not"):
                await catalogue.untag_async(repo, tag)

    async def collect() -> None:
        while True:
            await repo.gc_async()

    async with Repository.open_path(make(tmp_path / "repo")) as repo, create_task_group() as tasks:
        tasks.start_soon(collect)
        async with create_task_group() as pulls:
            for name in images.digests:
                pulls.start_soon(bring, name, f"not-{name}", name, f"not-{name}-again", f"{name}-too")
        tasks.cancel_scope.cancel()
    with Repository.open_path(tmp_path / "repo") as repo:
        assert [each.error for each in catalogue.images(repo)] == [None] * 2 * len(images.digests)
        repo.gc()
    found = Contents.read(tmp_path / "repo")
    assert found.objects == found.needed
    assert problems(tmp_path / "repo") == []


def test_a_temporary_name_that_goes_meanwhile_is_no_leftover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer of another process has renamed it."""
    listdir = os.listdir
    names = (".symlink-1234", ".composefs-async/.tmp-object-1234")

    def listed(fd: int) -> list[str]:
        found = listdir(fd)
        for name in names:
            if os.path.basename(name) in found:
                (path / name).unlink()
        return found

    path = make(tmp_path / "repo")
    (path / ".composefs-async").mkdir()
    (path / names[1]).touch()
    (path / names[0]).symlink_to("somewhere")
    with Repository.open_path(path) as repo:
        assert repo.gc(dry_run=True).leftovers == (names[1], names[0])
        monkeypatch.setattr(os, "listdir", listed)
        assert repo.gc() == GcResult()


def test_what_is_named_between_two_slices_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An import that stopped before its reference has found objects that go, and some that have gone."""

    def between(seconds: float) -> None:
        monkeypatch.undo()
        with Repository.open_path(tmp_path / "repo") as other:
            layer = stream(other, "layer", CONTENTS)
            stream(other, "config", ["new"], named={"layer": layer})

    with Repository.init(tmp_path / "repo", algorithm=Algorithm.SHA256, insecure=True) as repo:
        stream(repo, "layer", CONTENTS)
        monkeypatch.setattr(collect, "_SLICE", 0)
        monkeypatch.setattr(collect, "_BATCH", 1)
        monkeypatch.setattr(time, "sleep", between)
        repo.gc()
        assert [each.text for each in repo.fsck().errors] == []
        assert links(repo) == {"streams/layer", "streams/config"}
        repo.gc()
        assert links(repo) == set()
    assert problems(tmp_path / "repo") == []
