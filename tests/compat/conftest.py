"""The other implementations of composefs repositories, as programs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..oci.conftest import Tar


class Cfsctl:
    """One version of cfsctl at work on one repository."""

    def __init__(self, program: Path, repository: Path) -> None:
        self.program, self.repository = program, repository

    def __call__(self, *arguments: str | Path) -> bytes:
        command = [self.program, "--repo", self.repository, *arguments]
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def json(self, *arguments: str | Path) -> Any:
        return json.loads(self(*arguments, "--json"))

    def init(self, algorithm: str) -> None:
        self("init", "--insecure", "--algorithm", f"fsverity-{algorithm}-12", self.repository)

    def assert_sound(self) -> None:
        """Neither of its checks finds anything."""
        for command in (["fsck"], ["oci", "fsck"]):
            found = self.json(*command)
            assert found["ok"], found
            assert found["errors"] == []


@pytest.fixture
def cfsctl(tool: Callable[[str], Path]) -> Callable[..., Cfsctl]:
    """``cfsctl(repository)``, or skips; another version by its name."""

    def make(repository: Path, name: str = "cfsctl") -> Cfsctl:
        return Cfsctl(tool(name), repository)

    return make


@pytest.fixture(scope="session")
def tar() -> Tar:
    return Tar()
