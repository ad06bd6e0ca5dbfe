"""Garbage collection of the same handle, by another thread, in the middle of an operation that names something."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from composefs_async._repo import names
from composefs_async.digest import Algorithm
from composefs_async.errors import RepositoryInUseError
from composefs_async.repository import Repository

from .crashing import Contents
from .garbage import image_bytes, stream, write

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

    with Repository.init(tmp_path / "repo", algorithm=Algorithm.SHA256, insecure=True)[0] as repo:
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
