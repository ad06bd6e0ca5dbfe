"""Our mkcomposefs and composefs-info against the real ones."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from composefs_async.cli import composefs_info, mkcomposefs

VECTORS = Path(__file__).parents[1] / "vectors" / "image"
DUMPS = sorted(VECTORS.glob("*.dump"))
Tool = Callable[[str], Path]


def run(*command: str | Path) -> tuple[int, bytes]:
    result = subprocess.run(command, check=False, capture_output=True)
    return result.returncode, result.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, acl: bytes) -> Path:
    """A directory with all kinds of entries."""
    top = tmp_path_factory.mktemp("source")
    for size in (0, 1, 64, 65, 4096, 100_000, 5 << 20):
        (top / f"file{size}").write_bytes(os.urandom(size))
    (top / "deep" / "er" / "st").mkdir(parents=True)
    (top / "deep" / "a b").symlink_to("to a place")
    (top / "deep" / "long").symlink_to("x" * 3000)
    os.mkfifo(top / "deep" / "pipe")
    os.mknod(top / "deep" / "socket", stat.S_IFSOCK | 0o755)
    os.link(top / "file65", top / "deep" / "er" / "again")
    os.setxattr(top / "file1", "user.one", b"1")
    os.setxattr(top / "file64", "user.one", b"1")
    os.setxattr(top / "deep", "user.two", b"\0\xff")
    for name in ("file1", "file4096"):
        os.setxattr(top / name, "system.posix_acl_access", acl)
    os.setxattr(top / "deep", "system.posix_acl_default", acl)
    os.utime(top / "file0", ns=(0, 7))
    os.utime(top / "deep" / "er", ns=(0, -1_500_000_000))
    with open(top / "holes", "wb") as file:
        file.truncate(3 << 20)
        file.seek(1 << 20)
        file.write(b"here")
    if os.geteuid() == 0:
        os.mknod(top / "device", stat.S_IFBLK | 0o600, os.makedev(259, 70000))
        os.setxattr(top / "file65", "trusted.overlay.mine", b"t")
        os.chown(top / "file4096", 70000, 70000)
        for name in ("file1", "file65", "file4096", "deep", "deep/long", "deep/pipe"):
            os.setxattr(top / name, "security.selinux", b"u:r:t:s0\0", follow_symlinks=False)
    for number in range(400):
        (top / "deep" / "er" / "st" / f"{number:x}").write_bytes(b"%d" % (number % 3))
    return top


OPTIONS = [
    [],
    ["--use-epoch"],
    ["--skip-xattrs"],
    ["--user-xattrs"],
    ["--skip-devices"],
    ["--min-version=1"],
    ["--max-version=0"],
    ["--threads=1"],
    ["--use-epoch", "--skip-devices", "--skip-xattrs"],
]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_the_image_of_a_directory_is_the_same(
    tool: Tool, source: Path, tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, digest = run(tool("mkcomposefs"), *options, "--print-digest", source, tmp_path / "theirs")
    assert code == 0
    assert mkcomposefs.main([*options, "--print-digest", str(source), str(tmp_path / "ours")]) == 0
    assert capsys.readouterr().out == digest.decode()
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert mkcomposefs.main([*options, "--print-digest-only", str(source)]) == 0
    assert capsys.readouterr().out == digest.decode()


@pytest.mark.skipif(os.geteuid() != 0, reason="making a whiteout needs root")
def test_the_image_of_a_directory_with_a_whiteout_is_the_same(tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    os.mknod(tmp_path / "source" / "gone", stat.S_IFCHR | 0o600, 0)
    assert run(tool("mkcomposefs"), tmp_path / "source", tmp_path / "theirs")[0] == 0
    assert mkcomposefs.main([str(tmp_path / "source"), str(tmp_path / "ours")]) == 0
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def store_of(path: Path) -> dict[str, tuple[int, bytes | None]]:
    return {
        str(entry.relative_to(path)): (entry.stat().st_mode, entry.read_bytes() if entry.is_file() else None)
        for entry in path.rglob("*")
    }


def test_the_digest_store_is_the_same(tool: Tool, source: Path, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    assert run(tool("mkcomposefs"), f"--digest-store={theirs}", source, tmp_path / "image")[0] == 0
    assert mkcomposefs.main([f"--digest-store={ours}", str(source), str(tmp_path / "image")]) == 0
    assert store_of(ours) == store_of(theirs)


@pytest.mark.parametrize("dump", DUMPS, ids=lambda path: str(path.stem))
def test_the_image_of_a_dump_file_is_the_same(tool: Tool, dump: Path, tmp_path: Path) -> None:
    code, _ = run(tool("mkcomposefs"), "--from-file", dump, tmp_path / "theirs")
    assert mkcomposefs.main(["--from-file", str(dump), str(tmp_path / "ours")]) == code
    if code == 0:
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


COMMANDS = [
    ["ls"],
    ["dump"],
    ["objects"],
    ["missing-objects"],
    ["--basedir=store", "missing-objects"],
    ["--filter=deep", "ls"],
    ["--filter=file65", "--filter=deep", "dump"],
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("options", [[], ["--min-version=1"], ["--skip-xattrs"]], ids=["default", "1", "no xattrs"])
def test_info_prints_the_same(
    tool: Tool,
    source: Path,
    tmp_path: Path,
    options: list[str],
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mkcomposefs.main([*options, "--digest-store=store", str(source), "image"]) == 0
    for path in list(Path("store").rglob("*"))[::3]:
        if path.is_file():
            path.unlink()
    code, out = run(tool("composefs-info"), *arguments, "image")
    assert composefs_info.main([*arguments, "image"]) == code
    assert capsysbinary.readouterr().out == out


# composefs-info reads over the end of unusual paths, and loses attributes with an empty value and nearly no name.
SHOWN_OTHERWISE = {"payload-variants", "random-a", "random-b"}


@pytest.mark.parametrize(
    "dump", [path for path in DUMPS if path.stem not in SHOWN_OTHERWISE], ids=lambda path: str(path.stem)
)
def test_info_prints_the_same_for_images_of_dump_files(
    tool: Tool, dump: Path, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    image = tmp_path / "image"
    if run(tool("mkcomposefs"), "--from-file", dump, image)[0]:
        pytest.skip("mkcomposefs refuses this dump file")
    for command in ("ls", "dump", "objects"):
        code, out = run(tool("composefs-info"), command, image)
        assert composefs_info.main([command, str(image)]) == code
        assert capsysbinary.readouterr().out == out


def test_measure_prints_the_same(tool: Tool, source: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    # Of an empty file the real one prints another digest than the kernel would.
    files = sorted(str(path) for path in source.iterdir() if path.is_file() and path.stat().st_size)
    code, out = run(tool("composefs-info"), "measure-file", *files)
    assert composefs_info.main(["measure-file", *files]) == code == 0
    assert capsysbinary.readouterr().out == out
