"""Fixtures of the tests that run in the virtual machine; elsewhere none is collected.

There `tmp_path` is on /data, a file system with fs-verity. Python code runs about 15 times slower than on the host.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import json
import os
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from composefs_async.digest import Algorithm

collect_ignore_glob = [] if os.environ.get("COMPOSEFS_ASYNC_GUEST") == "1" else ["*"]

FS_IOC_ENABLE_VERITY = 0x40806685  # linux/fsverity.h
FS_IOC_MEASURE_VERITY = 0xC0046686


class Kernel:
    """fs-verity by the kernel's own calls, so that tests need not trust ours."""

    def enable(self, path: Path, algorithm: Algorithm) -> None:
        fd = os.open(path, os.O_RDONLY)
        try:
            # struct fsverity_enable_arg: version, algorithm, block size; no salt, no signature
            fcntl.ioctl(fd, FS_IOC_ENABLE_VERITY, struct.pack("<III116x", 1, algorithm.number, 4096))
        finally:
            os.close(fd)

    def measure(self, path: Path) -> tuple[int, str]:
        """Number of the algorithm and digest; OSError with ENODATA where the file is not protected."""
        fd = os.open(path, os.O_RDONLY)
        try:
            digest = bytearray(struct.pack("<HH64x", 0, 64))  # struct fsverity_digest
            fcntl.ioctl(fd, FS_IOC_MEASURE_VERITY, digest)
        finally:
            os.close(fd)
        number, size = struct.unpack_from("<HH", digest)
        return number, digest[4 : 4 + size].hex()


@pytest.fixture(scope="session")
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def data_dir(tmp_path: Path, kernel: Kernel) -> Path:
    """An empty directory of the test on a file system that is known to have fs-verity."""
    probe = tmp_path / "probe"
    probe.touch()
    kernel.enable(probe, Algorithm.SHA256)
    probe.unlink()
    return tmp_path


@pytest.fixture
def cfsctl(tool: Callable[[str], Path]) -> Callable[..., str]:
    """``cfsctl(repository, "fsck")`` gives its output; a failure of it is CalledProcessError with both streams."""
    program = tool("cfsctl")

    def call(repository: Path, *arguments: str | Path) -> str:
        command = [program, "--repo", repository, *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout

    return call


@pytest.fixture(scope="session")
def layer_files() -> dict[str, bytes]:
    """The content of the test image: empty, inline, just external, and of two levels of the Merkle tree."""
    return {
        "etc/empty": b"",
        "etc/hostname": b"guest\n",
        "usr/bin/small": bytes(range(256)) * 2,
        "usr/lib/large": b"".join(n.to_bytes(4, "little") for n in range(150_000)),
    }


@pytest.fixture
def oci_layout(data_dir: Path, layer_files: dict[str, bytes]) -> Path:
    """An OCI layout with one image, tagged ``latest``, of one gzip layer."""
    layer = _tar(layer_files)
    directory = data_dir / "layout"
    (directory / "blobs" / "sha256").mkdir(parents=True)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _blob(directory, "application/vnd.oci.image.config.v1+json", json.dumps(config).encode()),
        "layers": [
            _blob(directory, "application/vnd.oci.image.layer.v1.tar+gzip", gzip.compress(layer, 1, mtime=0)),
        ],
    }
    entry = _blob(directory, "application/vnd.oci.image.manifest.v1+json", json.dumps(manifest).encode())
    entry["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return directory


def _blob(directory: Path, media_type: str, content: bytes) -> dict[str, object]:
    digest = hashlib.sha256(content).hexdigest()
    (directory / "blobs" / "sha256" / digest).write_bytes(content)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


def _tar(files: dict[str, bytes]) -> bytes:
    """With every parent directory, once and first: cfsctl 0.9.0 refuses layers that leave one out."""
    parents = {str(parent) for name in files for parent in Path(name).parents} - {"."}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(parents):
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
