"""The command line, run inside this process or as a program, and a repository to run it on."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import anyio
import click
import pytest
from jsonschema import Draft202012Validator

from composefs_async._zstd import zstd
from composefs_async.cli import context
from composefs_async.cli.app import run
from composefs_async.cli.groups import PROGRAM
from composefs_async.cli.json_schemas import SHAPES, schema
from composefs_async.oci import Platform, pull
from composefs_async.repository import Repository

VECTORS = Path(__file__).parent.parent / "vectors"


@dataclass
class Run:
    """What a command has printed."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def good(self) -> Run:
        assert self.code == 0, self.err
        return self

    def failed(self, code: int, *words: str) -> Run:
        """With this code, nothing on standard output, and one line that has all the words."""
        assert (self.code, self.out) == (code, b""), self
        assert self.err.startswith("composefs-async: ")
        assert self.err.count("\n") == 1, self.err
        assert [word for word in words if word not in self.err] == [], self.err
        return self


class Cli:
    """``cli("init", path)`` runs that in this process; ``cli.on(path)`` gives the same for one repository."""

    def __init__(self, captured: pytest.CaptureFixture[bytes], *common: str) -> None:
        self._captured, self._common = captured, common

    def on(self, repository: Path | str) -> Cli:
        return Cli(self._captured, *self._common, "--repo", str(repository))

    def __call__(self, *arguments: object, stdin: bytes = b"") -> Run:
        self._captured.readouterr()
        with pytest.MonkeyPatch.context() as patch, io.TextIOWrapper(io.BytesIO(stdin)) as source:
            patch.setattr(sys, "stdin", source)
            code = run([*self._common, *map(str, arguments)])
        out, err = self._captured.readouterr()
        return Run(code, out, err.decode())


@pytest.fixture
def cli(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Cli:
    for name in ("COMPOSEFS_ASYNC_TRACEBACK", "COMPOSEFS_ASYNC_REPO"):
        monkeypatch.delenv(name, raising=False)
    return Cli(capsysbinary)


@pytest.fixture(autouse=True)
def told_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """All JSON that commands print in this process is what their schemas tell, without further keys."""
    printed = context.print_bytes

    def check(pieces: Iterable[bytes]) -> None:
        pieces = list(pieces)
        if (current := click.get_current_context(silent=True)) is not None:
            validator(schema_name(current)).validate(json.loads(b"".join(pieces)))
        printed(pieces)

    monkeypatch.setattr(context, "print_bytes", check)


def schema_name(ctx: click.Context) -> str:
    """The command's path, with the option that changes what it prints."""
    path = ctx.command_path.removeprefix(f"{PROGRAM} ")
    variants = [name for name in SHAPES if name.startswith(f"{path} --")]
    return next((each for each in variants if ctx.params[option_name(each)] not in (None, False)), path)


def option_name(command: str) -> str:
    return command.split(" --")[1].replace("-", "_")


@cache
def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(schema(name, closed=True))


@pytest.fixture
def program() -> Callable[..., Run]:
    """``program("init", path, input=…)`` runs it as a process; options are those of `subprocess.run`."""

    def call(*arguments: object, **options: Any) -> Run:
        command = [sys.executable, "-W", "error", "-m", "composefs_async", *map(str, arguments)]
        options.setdefault("stdout", subprocess.PIPE)
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        done = subprocess.run(command, stderr=subprocess.PIPE, check=False, timeout=60, **options)
        return Run(done.returncode, done.stdout or b"", done.stderr.decode())

    return call


@pytest.fixture(scope="session")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "repo"
    with Repository.init(path, insecure=True) as repo:
        for case in ("basic", "one", "artifact"):
            anyio.run(
                partial(pull, repo, f"oci:{VECTORS}/layouts/{case}", tag=case, platform=Platform("linux", "amd64"))
            )
    return path


@pytest.fixture
def repo(_made: Path, tmp_path: Path) -> Path:
    """The path of a repository of its own with the images ``basic``, ``one`` and ``artifact``."""
    return Path(shutil.copytree(_made, tmp_path / "repo", symlinks=True))


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """The path of an empty insecure repository."""
    Repository.init(tmp_path / "empty", insecure=True).close()
    return tmp_path / "empty"


@pytest.fixture
def pulled(empty: Path, cli: Cli) -> Path:
    """The path of a repository with the image ``basic`` alone."""
    source = f"oci:{VECTORS}/layouts/basic:latest"
    cli.on(empty)("oci", "pull", source, "basic", "--platform", "linux/amd64").good()
    return empty


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
