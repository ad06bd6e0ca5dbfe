"""A registry with an image in it, and how to reach it without looking at this machine's configuration."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from composefs_async import Repository
from composefs_async.oci.layout_writer import OciLayoutWriter
from composefs_async.progress import ProgressEvent
from composefs_async.registry.access import Access, Transfer
from composefs_async.testing.registry import FakeRegistry


def make_tar(seed: int, files: int, size: int) -> bytes:
    """A tar of files whose content gzip cannot make smaller."""
    source, out = random.Random(seed), io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for number in range(files):
            member = tarfile.TarInfo(f"layer{seed}/file{number}")
            member.size = size
            archive.addfile(member, io.BytesIO(source.randbytes(size)))
    return out.getvalue()


@dataclass
class SmallImage:
    """An image as it is in an image directory: manifest, config and layers."""

    directory: Path
    digest: str
    manifest: bytes
    blobs: dict[str, bytes] = field(repr=False)

    @property
    def layers(self) -> list[str]:
        return [layer["digest"] for layer in json.loads(self.manifest)["layers"]]

    @property
    def size(self) -> int:
        """Of the layers as shipped."""
        return sum(layer["size"] for layer in json.loads(self.manifest)["layers"])

    def put(self, registry: FakeRegistry, name: str = "a/b", tag: str = "1") -> None:
        for blob in self.blobs.values():
            registry.put_blob(name, blob)
        assert registry.put_manifest(name, tag, self.manifest) == self.digest


def _make_image(directory: Path, layers: list[tuple[bytes, Any]]) -> SmallImage:
    writer = OciLayoutWriter(directory)
    writer.add_image([writer.add_layer(tar, compression) for tar, compression in layers], tag="1")
    entry = json.loads((directory / "index.json").read_bytes())["manifests"][0]
    blobs = {f"sha256:{path.name}": path.read_bytes() for path in (directory / "blobs/sha256").iterdir()}
    manifest = blobs.pop(entry["digest"])
    return SmallImage(directory, entry["digest"], manifest, blobs)


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> SmallImage:
    """Three layers: a small one, one of 3 MiB that gzip cannot make smaller, and a plain one."""
    layers = [(make_tar(1, 4, 1000), "gzip"), (make_tar(2, 12, 256 << 10), "gzip"), (make_tar(3, 3, 500), "none")]
    return _make_image(tmp_path_factory.mktemp("image") / "layout", layers)


@pytest.fixture(scope="session")
def make_image(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., SmallImage]:
    def make(*layers: tuple[bytes, Any]) -> SmallImage:
        return _make_image(tmp_path_factory.mktemp("image") / "layout", list(layers))

    return make


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Repository]:
    with Repository.init(tmp_path / "repo", insecure=True) as repository:
        yield repository


@pytest.fixture
def access(tmp_path: Path) -> Access:
    """Nothing of this machine's user counts; HTTP without TLS is fine."""
    home = tmp_path / "home"
    home.mkdir()
    return Access(tls_verify=False, policy="insecure", environ={"HOME": str(home), "PATH": "/usr/bin:/bin"})


QUICK = Transfer(retry_delay=0.001, idle_timeout=0.3, header_timeout=1.0, connect_timeout=1.0)
"""Waits that a test can wait for."""
RANGES = Transfer(
    retry_delay=0.001,
    idle_timeout=0.3,
    header_timeout=1.0,
    connect_timeout=1.0,
    chunk_size=256 << 10,
    parallel_size=1 << 20,
    look_ahead=2 << 20,
)
"""The same, and the larger layer comes in a dozen parts."""


@pytest.fixture
def events() -> list[ProgressEvent]:
    return []
