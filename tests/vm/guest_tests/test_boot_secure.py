"""What machines boot, where the kernel has fs-verity and vfat: boot partitions, signatures, and mounts that need a
newer kernel."""

from __future__ import annotations

import ctypes
import datetime
import errno
import fcntl
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from composefs_async import Algorithm, Repository, fsverity
from composefs_async.boot import Signer, check_boot, prepare_boot, unprepare_boot
from composefs_async.errors import MountError
from composefs_async.oci import pull

from ...boot.conftest import B1_FILES, layer_of, write_layout
from ...maintenance.crashing import interrupt

FS_IOC_ENABLE_VERITY = 0x40806685  # linux/fsverity.h
FILES = ["6.1.0-demo/initramfs.img", "6.1.0-demo/vmlinuz", "loader/entries/6.1.0-demo.conf"]


@pytest.fixture
def repo(data_dir: Path) -> Iterator[Repository]:
    """A secure repository with the image B1."""
    with Repository.init(data_dir / "composefs", algorithm=Algorithm.SHA256) as found:
        anyio.run(partial(pull, found, write_layout(data_dir / "layout", layer_of(dict(B1_FILES))), tag="demo"))
        yield found


@pytest.fixture
def vfat(data_dir: Path) -> Iterator[Path]:
    """A boot partition of 2 MB."""
    disk, place = data_dir / "disk", data_dir / "boot"
    with disk.open("wb") as file:
        file.truncate(2 << 20)
    place.mkdir()
    subprocess.run(["mkfs.vfat", disk], check=True, stdout=subprocess.DEVNULL)
    with mounted(disk, place):
        yield place


def files_of(top: Path) -> list[str]:
    return sorted(str(path.relative_to(top)) for path in top.rglob("*") if path.is_file())


def test_a_boot_partition_with_vfat(repo: Repository, vfat: Path) -> None:
    done = prepare_boot(repo, "demo", vfat, cmdline=["rw"])
    assert done.karg.startswith("composefs.digest=v1-sha256-12:")
    assert files_of(vfat) == FILES
    assert (vfat / FILES[1]).read_bytes() == B1_FILES["usr/lib/modules/6.1.0-demo/vmlinuz"]
    assert check_boot(repo, vfat / FILES[2]).problems == ()
    before = {path: (vfat / path).stat().st_mtime_ns for path in FILES}
    assert prepare_boot(repo, "demo", vfat, cmdline=["rw"]).written == ()
    assert {path: (vfat / path).stat().st_mtime_ns for path in FILES} == before
    # A stop before the first file had its name.
    (vfat / FILES[1]).rename(vfat / "6.1.0-demo/.vmlinuz.tmp")
    assert prepare_boot(repo, "demo", vfat, cmdline=["rw"]).written == (FILES[1],)
    assert files_of(vfat) == FILES
    unprepare_boot(repo, "demo", vfat)
    assert files_of(vfat) == []


def test_a_boot_partition_that_is_full(repo: Repository, vfat: Path, data_dir: Path) -> None:
    prepare_boot(repo, "demo", vfat)
    large = {**B1_FILES, "usr/lib/modules/6.1.0-demo/vmlinuz": bytes(3 << 20)}
    anyio.run(partial(pull, repo, write_layout(data_dir / "large", layer_of(large)), tag="large"))
    with pytest.raises(OSError, match="No space left") as caught:
        prepare_boot(repo, "large", vfat)
    assert caught.value.errno == errno.ENOSPC
    assert files_of(vfat) == FILES
    subprocess.run(["mount", "-o", "remount,ro", vfat], check=True)
    with pytest.raises(OSError, match="Read-only"):
        prepare_boot(repo, "large", vfat)
    assert prepare_boot(repo, "demo", vfat).written == ()


def test_no_power_at_any_step_leaves_an_entry_that_does_not_boot(repo: Repository, data_dir: Path) -> None:
    """The disk is looked at as it is when the process dies, without what the kernel had not written yet."""
    other = {**B1_FILES, "usr/lib/modules/6.1.0-demo/vmlinuz": b"new" * 5000, "etc/x": b"y"}
    anyio.run(partial(pull, repo, write_layout(data_dir / "two", layer_of(other)), tag="two"))
    disk, work, left, place = (data_dir / name for name in ("disk", "work", "left", "boot"))
    place.mkdir()
    for tag in ("two", "demo"):  # so that all the rest is on the boot partition
        prepare_boot(repo, tag, place, entry_id=tag)
        unprepare_boot(repo, tag, place)
    with disk.open("wb") as file:
        file.truncate(2 << 20)
    subprocess.run(["mkfs.vfat", disk], check=True, stdout=subprocess.DEVNULL)
    with mounted(disk, place):
        prepare_boot(repo, "demo", place, entry_id="demo")

    def prepare() -> object:
        with Repository.open_path(data_dir / "composefs") as own:
            return prepare_boot(own, "two", place, entry_id="two")

    steps = 0
    while True:
        steps += 1
        shutil.copy(disk, work)
        with mounted(work, place):
            stopped = interrupt(prepare, steps)
            shutil.copy(work, left)
        with mounted(left, place):
            entries = sorted((place / "loader/entries").glob("*.conf"))
            assert [check_boot(repo, entry).problems for entry in entries] == [()] * len(entries)
            assert (len(entries), place / "loader/entries/demo.conf" in entries) == (1 if stopped else 2, True)
            if stopped:
                prepare()
            assert (place / "two/vmlinuz").read_bytes() == b"new" * 5000
        if not stopped:
            break
    assert steps > 8


@contextmanager
def mounted(disk: Path, place: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "vfat", "-o", "loop", disk, place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_kernel_that_is_too_old_for_rootless_mounts_is_told(repo: Repository, data_dir: Path) -> None:
    if tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= (6, 16):
        pytest.skip("this kernel can do it")
    image = prepare_boot(repo, "demo", data_dir).image
    with pytest.raises(MountError, match=r"since Linux 6\.16"):
        repo.run_rootless(image.hex(), ["true"])


# -- signatures --------------------------------------------------------------------------------


def enable(path: Path, digest: Any, signature: bytes) -> None:
    """fs-verity with a signature, by the kernel's own call."""
    buffer = ctypes.create_string_buffer(signature, len(signature))
    # struct fsverity_enable_arg: version, algorithm, block size, salt size, salt, signature size, reserved, signature
    argument = struct.pack("<IIIIQII", 1, digest.algorithm.number, 4096, 0, 0, len(signature), 0)
    argument += struct.pack("<Q88x", ctypes.addressof(buffer))
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, FS_IOC_ENABLE_VERITY, argument)
    finally:
        os.close(fd)


def trust(certificate: bytes) -> None:
    """Add a certificate, in DER, to the keys that fs-verity believes."""
    keys = Path("/proc/keys").read_text().splitlines()
    ring = next((int(line.split()[0], 16) for line in keys if ".fs-verity" in line), None)
    if ring is None:
        pytest.skip("the kernel checks no signatures of fs-verity")
    libc = ctypes.CDLL(None, use_errno=True)
    add_key = 248  # asm/unistd_64.h
    if libc.syscall(add_key, b"asymmetric", b"test", certificate, len(certificate), ctypes.c_int(ring)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def test_signatures_are_what_the_kernel_demands(data_dir: Path) -> None:
    pytest.importorskip("cryptography")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1)
    start = datetime.datetime(2020, 1, 1)
    builder = builder.not_valid_before(start).not_valid_after(start.replace(year=2049))
    certificate = builder.sign(key, hashes.SHA256())
    (data_dir / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (data_dir / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    signer = Signer(data_dir / "key.pem", data_dir / "cert.pem")
    trust(certificate.public_bytes(serialization.Encoding.DER))
    for algorithm in Algorithm:
        content = b"content" * 1000
        digest = fsverity.digest(content, algorithm)
        path = data_dir / algorithm.value
        path.write_bytes(content)
        with pytest.raises(OSError, match=r"."):
            enable(path, digest, signer.sign(fsverity.digest(b"other", algorithm)))
        enable(path, digest, signer.sign(digest))
