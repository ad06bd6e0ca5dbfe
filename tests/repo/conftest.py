from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from composefs_async.digest import Algorithm
from composefs_async.repository import Repository


@pytest.fixture(params=list(Algorithm), ids=lambda algorithm: algorithm.value)
def repo(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Repository]:
    """An empty insecure repository, of either algorithm, at ``tmp_path / "repo"``."""
    repository = Repository.init(tmp_path / "repo", algorithm=request.param, insecure=True)
    with repository:
        yield repository
