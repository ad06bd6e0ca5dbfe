"""Archives of real tar programs split, read back and say what the program says."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from composefs_async.digest import ObjectId
from composefs_async.errors import TarError
from composefs_async.oci.tar.members import EntryType, TarEntry, read_entries
from composefs_async.oci.tar.sparse import SparseContent
from composefs_async.oci.tar.split import EXTERNAL, INLINE, LARGE_END, TarSplitter

GNU_FORMATS = ["v7", "oldgnu", "gnu", "ustar", "posix"]
MTIME = 1_700_000_000
ANY_OBJECT = ObjectId(bytes(64))


@pytest.fixture
def gnu_tar() -> Callable[..., bytes]:
    program = shutil.which("tar")
    if (
        program is None
        or b"GNU tar" not in subprocess.run([program, "--version"], capture_output=True, check=True).stdout
    ):
        pytest.skip("GNU tar is not on PATH")
    return lambda *arguments: subprocess.run([program, "-c", *arguments], capture_output=True, check=True).stdout


@pytest.fixture
def bsd_tar() -> Callable[..., bytes]:
    program = shutil.which("bsdtar")
    if program is None:
        pytest.skip("bsdtar is not on PATH")
    return lambda *arguments: subprocess.run([program, "-c", *arguments], capture_output=True, check=True).stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "sub" / "deeper").mkdir(parents=True)
    for size in (0, 1, 64, 65, 511, 512, 513, 5000, 600_000):
        (root / f"file{size}").write_bytes(bytes(index % 251 for index in range(size)))
    (root / "sub" / "exec").write_bytes(b"x" * 100)
    (root / "sub" / "exec").chmod(0o4755)
    os.link(root / "file65", root / "sub" / "hard")
    (root / "sub" / "soft").symlink_to("../file65")
    os.mkfifo(root / "sub" / "fifo")
    for path in sorted(root.rglob("*")):
        os.utime(path, ns=(0, MTIME * 10**9 + 123_456_789), follow_symlinks=False)
    return root


def entries(archive: bytes) -> list[TarEntry]:
    events = TarSplitter().feed(archive, final=True)
    assert b"".join(event.data for event in events) == archive
    chunks: list[bytes | ObjectId] = []
    for event in events:
        if event.kind == INLINE:
            chunks.append(event.data)
        elif event.kind in (EXTERNAL, LARGE_END):
            chunks.append(ANY_OBJECT)
    return list(read_entries(chunks))


def facts(found: list[TarEntry]) -> dict[str, tuple[object, ...]]:
    return {
        entry.path.decode().removeprefix("./"): (entry.type, entry.mode, entry.size, entry.link, entry.mtime_ns)
        for entry in found
    }


def facts_of_tree(root: Path, archive_names: list[str], nanoseconds: int) -> dict[str, tuple[object, ...]]:
    expected: dict[str, tuple[object, ...]] = {}
    seen: dict[int, str] = {}
    for name in archive_names:
        stat = (root / name).lstat()
        mtime = MTIME * 10**9 + nanoseconds
        mode = stat.st_mode & 0o7777
        if stat.st_nlink > 1 and stat.st_ino in seen and not (root / name).is_dir():
            expected[name] = (EntryType.HARDLINK, mode, 0, seen[stat.st_ino].encode(), mtime)
            continue
        seen[stat.st_ino] = name
        kind = EntryType(stat.st_mode & 0o170000)
        link = os.readlink(root / name).encode() if kind is EntryType.SYMLINK else b""
        expected[name] = (kind, mode, stat.st_size if kind is EntryType.FILE else 0, link, mtime)
    return expected


@pytest.mark.parametrize("tar_format", GNU_FORMATS)
def test_every_format_of_gnu_tar_reads_back(gnu_tar, tree, tar_format):
    names = sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*"))
    if tar_format == "v7":  # which has no type for it
        names.remove("sub/fifo")
    archive = gnu_tar(f"--format={tar_format}", "--no-recursion", "-C", str(tree), *names)
    assert facts(entries(archive)) == facts_of_tree(tree, names, 123_456_789 if tar_format == "posix" else 0)


@pytest.mark.parametrize("tar_format", ["oldgnu", "gnu", "posix"])
def test_long_names_and_links_of_gnu_tar_read_back(gnu_tar, tmp_path, tar_format):
    directory = tmp_path / ("d" * 120) / ("e" * 120)
    directory.mkdir(parents=True)
    (directory / "file").write_bytes(b"x" * 200)
    (tmp_path / "link").symlink_to("t" * 300)
    archive = gnu_tar(f"--format={tar_format}", "-C", str(tmp_path), "d" * 120, "link")
    found = {entry.path.decode(): entry for entry in entries(archive)}
    assert set(found) == {"d" * 120, f"{'d' * 120}/{'e' * 120}", f"{'d' * 120}/{'e' * 120}/file", "link"}
    assert found["link"].link == b"t" * 300


@pytest.mark.parametrize("seconds", [-1, -86_400, -(1 << 33), 1 << 35])
@pytest.mark.parametrize("tar_format", ["gnu", "posix"])
def test_times_before_1970_and_far_ahead_read_back(gnu_tar, tmp_path, tar_format, seconds):
    (tmp_path / "file").touch()
    archive = gnu_tar(f"--format={tar_format}", f"--mtime=@{seconds}", "-C", str(tmp_path), "file")
    assert [entry.mtime_ns for entry in entries(archive)] == [seconds * 10**9]


def test_large_owners_of_gnu_tar_read_back(gnu_tar, tmp_path):
    (tmp_path / "file").touch()
    for tar_format in ("gnu", "posix"):
        archive = gnu_tar(
            f"--format={tar_format}", "--owner=:4000000000", "--group=:4294967294", "-C", str(tmp_path), "file"
        )
        assert [(entry.uid, entry.gid) for entry in entries(archive)] == [(4_000_000_000, 4_294_967_294)]


def test_xattrs_of_gnu_tar_read_back(gnu_tar, tmp_path):
    path = tmp_path / "file"
    path.touch()
    try:
        os.setxattr(path, "user.b", b"value=\0\n")
        os.setxattr(path, "user.a", b"")
    except OSError:
        pytest.skip("the file system of tmp_path has no user xattrs")
    archive = gnu_tar("--format=posix", "--xattrs", "--xattrs-include=user.*", "-C", str(tmp_path), "file")
    assert [entry.xattrs for entry in entries(archive)] == [((b"user.a", b""), (b"user.b", b"value=\0\n"))]


def make_sparse(path: Path) -> bytes:
    content = bytearray(10 << 20)
    content[5_000_000:5_000_003], content[-3:] = b"mid", b"end"
    with path.open("wb") as file:
        os.pwrite(file.fileno(), b"mid", 5_000_000)
        os.pwrite(file.fileno(), b"end", (10 << 20) - 3)
    return bytes(content)


def test_sparse_members_of_the_old_gnu_form_are_refused(gnu_tar, tmp_path):
    make_sparse(tmp_path / "file")
    with pytest.raises(TarError, match="sparse members of the old GNU form"):
        entries(gnu_tar("--format=gnu", "--sparse", "-C", str(tmp_path), "file"))


def check_sparse(archive: bytes, expected: bytes) -> None:
    (entry,) = entries(archive)
    assert (entry.path, entry.size) == (b"file", len(expected))
    assert isinstance(entry.content, SparseContent)
    data = archive[entry.offset + 512 :][: entry.content.form.stored]
    segments, at = entry.content.form.segments(data) or ([], 0)
    made = bytearray(entry.size)
    for offset, length in segments:
        made[offset : offset + length] = data[at : at + length]
        at += length
    assert len(data) == at < len(made)
    assert made == expected


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_sparse_members_of_gnu_tar_read_back(gnu_tar, tmp_path, version):
    expected = make_sparse(tmp_path / "file")
    check_sparse(gnu_tar("--format=posix", f"--sparse-version={version}", "-S", "-C", str(tmp_path), "file"), expected)


def test_sparse_members_of_bsdtar_read_back(bsd_tar, tmp_path):
    expected = make_sparse(tmp_path / "file")
    archive = bsd_tar("--format=pax", "-f", "-", "-C", str(tmp_path), "file")
    if b"GNU.sparse" not in archive[:2048]:
        pytest.skip("the file system of tmp_path does not say where holes are")
    check_sparse(archive, expected)


@pytest.mark.parametrize("tar_format", ["ustar", "pax", "gnutar"])
def test_formats_of_bsdtar_read_back(bsd_tar, tree, tar_format):
    names = sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*"))
    archive = bsd_tar(f"--format={tar_format}", "-n", "-C", str(tree), *names)
    assert facts(entries(archive)) == facts_of_tree(tree, names, 123_456_789 if tar_format == "pax" else 0)


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_formats_of_python_read_back(tree, tmp_path, tar_format):
    path = tmp_path / "python.tar"
    names = sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*"))
    with tarfile.open(path, "w", format=tar_format) as archive:
        for name in names:
            archive.add(tree / name, name, recursive=False)
    found, expected = facts(entries(path.read_bytes())), facts_of_tree(tree, names, 0)
    # Python writes times as floating-point numbers, so only the seconds are sure.
    assert {name: fact[:4] for name, fact in found.items()} == {name: fact[:4] for name, fact in expected.items()}
    assert {entry.mtime_ns // 10**9 for entry in entries(path.read_bytes())} == {MTIME}
