from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from composefs_async._sys import files
from composefs_async.digest import Algorithm
from composefs_async.repository import Repository


@pytest.fixture(params=list(Algorithm), ids=lambda algorithm: algorithm.value)
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Repository]:
    """An empty insecure repository, of either algorithm, at ``tmp_path / "repo"``."""
    repository = Repository.init(tmp_path / "repo", algorithm=request.param, insecure=True)
    with repository:
        yield repository


@pytest.fixture
def without_flushes(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time, and make no difference to what a process that is killed leaves."""
    monkeypatch.setattr(files, "syncfs", lambda fd: None)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
