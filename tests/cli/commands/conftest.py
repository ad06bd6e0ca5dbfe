"""The command line run inside the test's process, with standard input, and what cfsctl says of its repositories."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from composefs_async import Repository
from composefs_async._zstd import zstd
from composefs_async.cli.app import run

VECTORS = Path(__file__).parents[2] / "vectors"


@dataclass(frozen=True)
class Result:
    code: int
    raw: bytes
    """Standard output."""
    error: str
    """Standard error."""

    @property
    def output(self) -> str:
        return self.raw.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


@pytest.fixture
def cli(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """``cli("oci", "images", stdin=b"")`` runs that command as a program would run it."""
    monkeypatch.delenv("COMPOSEFS_ASYNC_TRACEBACK", raising=False)

    def call(*arguments: str | os.PathLike[str], stdin: bytes = b"") -> Result:
        with io.TextIOWrapper(io.BytesIO(stdin)) as source:
            monkeypatch.setattr(sys, "stdin", source)
            code = run([os.fspath(argument) for argument in arguments])
        captured = capsysbinary.readouterr()
        return Result(code, captured.out, captured.err.decode())

    return call


@pytest.fixture
def golden(tmp_path: Path) -> Callable[[str], tuple[Path, Any]]:
    """``golden("g4-sha512-v1")`` is a repository that cfsctl made, and what cfsctl says of it."""

    def unpack(flavour: str) -> tuple[Path, Any]:
        content = zstd.decompress((VECTORS / "repository" / f"{flavour}.tar.zst").read_bytes())
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            archive.extractall(tmp_path / "golden", filter="fully_trusted")
        (meta,) = (tmp_path / "golden").rglob("meta.json")
        return meta.parent, json.loads((VECTORS / "repository" / f"{flavour}.json").read_text())

    return unpack


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """An insecure repository without anything in it."""
    repo, _ = Repository.init(tmp_path / "empty", insecure=True)
    repo.close()
    return tmp_path / "empty"


@pytest.fixture
def pulled(cli: Callable[..., Result], empty: Path) -> Path:
    """A repository with the image ``basic``: two layers."""
    pull = cli("--repo", empty, "oci", "pull", f"oci:{VECTORS}/layouts/basic:latest", "basic", "--platform=linux/amd64")
    assert pull.code == 0
    return empty


@pytest.fixture
def copied_layouts(tmp_path: Path) -> Path:
    """A copy of all image directories, to be damaged."""
    shutil.copytree(VECTORS / "layouts", tmp_path / "layouts")
    return tmp_path / "layouts"
