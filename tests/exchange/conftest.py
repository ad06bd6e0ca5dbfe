"""Small images in repositories, and stores in memory that count, fail and forget as told."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import random
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest

from composefs_async.digest import Algorithm
from composefs_async.exchange.backends.memory import MemoryStore
from composefs_async.exchange.store import Store
from composefs_async.oci import Platform, pull
from composefs_async.oci.layout_writer import OciLayoutWriter
from composefs_async.repository import Repository

PLATFORM = Platform("linux", "amd64")


def text(size: int, seed: int) -> bytes:
    """Content that compresses."""
    some = random.Random(seed).randbytes(min(size, 4096) // 2 + 1).hex().encode()
    return (some * (size // len(some) + 1))[:size]


def noise(size: int, seed: int) -> bytes:
    """Content that does not compress."""
    return random.Random(seed * 104_729 + size).randbytes(size)


def archive(files: Mapping[str, bytes]) -> bytes:
    """A tar of these files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return out.getvalue()


@dataclass
class Journal:
    """What is asked of a store in memory; *fail* may raise before an operation happens."""

    calls: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    fail: Callable[[str, str], object] = lambda operation, key: None

    def __call__(self, operation: str, key: str) -> None:
        self.calls.append((operation, key))
        self.fail(operation, key)

    def count(self, operation: str) -> int:
        return sum(each == operation for each, _ in self.calls)


class Images:
    """Makes repositories, and images in them out of layers of files."""

    def __init__(self, tmp_path: Path, algorithm: Algorithm) -> None:
        self._path, self._algorithm, self._count = tmp_path, algorithm, 0
        self._open: list[Repository] = []

    def repository(self, name: str = "") -> Repository:
        self._count += 1
        path = self._path / (name or f"repository-{self._count}")
        repo = Repository.init(path, algorithm=self._algorithm, insecure=True, ensure=True)
        self._open.append(repo)
        return repo

    def add(self, repo: Repository, tag: str, *layers: Mapping[str, bytes]) -> str:
        """Import an image of these layers; returns the digest of its manifest."""
        self._count += 1
        writer = OciLayoutWriter(self._path / f"layout-{self._count}")
        written = [writer.add_layer(io.BytesIO(archive(files))) for files in layers]
        writer.add_image(written, tag="image", platform=PLATFORM)

        async def work() -> str:
            result = await pull(repo, f"oci:{writer.directory}:image", tag=tag, platform=PLATFORM)
            return result.manifest_digest

        return anyio.run(work)

    def close(self) -> None:
        for repo in self._open:
            repo.close()


@pytest.fixture(params=[Algorithm.SHA512])
def images(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Images]:
    made = Images(tmp_path, request.param)
    yield made
    made.close()


def memory_store(backend: MemoryStore | None = None, **options: float) -> Store:
    """A handle of a store in memory that has its description."""
    backend = backend or MemoryStore()
    store = Store(backend, **options)  # type: ignore[arg-type]
    if "composefs-store.json" not in backend.objects:
        anyio.run(store.init)
    return store


@dataclass
class Server:
    """A program that speaks S3 on this machine."""

    endpoint: str
    bucket: str

    def url(self, prefix: str) -> str:
        return f"s3://{self.bucket}/{prefix}"


INSTALL = {
    "gofakes3": "go install github.com/johannesboyne/gofakes3/cmd/gofakes3@v1.2.0",
    "versitygw": "go install github.com/versity/versitygw/cmd/versitygw@v1.8.0",
}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def await_port(process: subprocess.Popen[bytes], port: int) -> None:
    """Return when something listens there."""
    for _ in range(500):
        assert process.poll() is None, "the server has ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise AssertionError("the server does not listen")


def _command(name: str, directory: Path, port: int) -> list[str]:
    address = f"127.0.0.1:{port}"
    if name == "gofakes3":
        return ["gofakes3", "-host", address, "-backend", "mem", "-initialbucket", "test"]
    options = ["--access", "key", "--secret", "secret", "--port", address, "--region", "us-east-1"]
    return ["versitygw", *options, "posix", str(directory)]


@contextlib.contextmanager
def _running(name: str, directory: Path) -> Iterator[Server]:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not on PATH; {INSTALL[name]}")
    if importlib.util.find_spec("obstore") is None:
        pytest.skip("obstore is not installed")
    (directory / "test").mkdir()
    port = free_port()
    with (
        pytest.MonkeyPatch.context() as patch,
        subprocess.Popen(_command(name, directory, port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run,
    ):
        for variable, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("REGION", "us-east-1")):
            patch.setenv(f"AWS_{variable}", value)
        try:
            await_port(run, port)
            yield Server(f"http://127.0.0.1:{port}", "test")
        finally:
            run.terminate()


@pytest.fixture(scope="session")
def gofakes3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An S3 server in memory; skips, with the command that installs it, where there is none."""
    with _running("gofakes3", tmp_path_factory.mktemp("gofakes3")) as server:
        yield server


@pytest.fixture(scope="session")
def versitygw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An S3 server on files, whose conditional writes are atomic; skips where there is none."""
    with _running("versitygw", tmp_path_factory.mktemp("versitygw")) as server:
        yield server


FILES = {
    "etc/a": text(3000, 1),
    "etc/b": text(500, 2),
    "usr/c": noise(2000, 3),
    "usr/empty": b"",
    "usr/d": text(9000, 4),
}
MORE = {"usr/d": text(9000, 5), "usr/e": noise(700, 6), "usr/f": text(70, 7)}


def snapshot(path: Path) -> dict[str, bytes | str]:
    """Content of all objects and targets of all links of a repository, without its own notes."""
    found: dict[str, bytes | str] = {}
    for entry in sorted(path.rglob("*")):
        name = str(entry.relative_to(path))
        if name.startswith((".composefs-async", "meta.json")):
            continue
        if entry.is_symlink():
            found[name] = str(entry.readlink())
        elif entry.is_file():
            found[name] = entry.read_bytes()
    return found
