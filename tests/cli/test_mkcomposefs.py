"""mkcomposefs and composefs-info as commands and by their own names."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from composefs_async import cli, fsverity
from composefs_async.cli import composefs_info, mkcomposefs
from composefs_async.cli.app import run
from composefs_async.digest import Algorithm
from composefs_async.erofs.reader.tree import image_info, image_to_tree
from composefs_async.tree.dumpwriter import write_dump

pytestmark = pytest.mark.usefixtures("no_leaks")

CONTENT = b"content of an object\n" * 10


@pytest.fixture
def source(tmp_path: Path) -> Path:
    top = tmp_path / "source"
    (top / "directory with space").mkdir(parents=True)
    (top / "small").write_bytes(b"small")
    (top / "large").write_bytes(CONTENT)
    (top / "directory with space" / "link").symlink_to("a target")
    for path in (top / "directory with space" / "link", top / "directory with space", *top.iterdir(), top):
        os.utime(path, (0, 1000), follow_symlinks=False)
    return top


def dump(image: Path) -> bytes:
    return b"".join(write_dump(image_to_tree(image.read_bytes())))


@pytest.mark.parametrize("call", [mkcomposefs.main, lambda arguments: run(["mkcomposefs", *arguments])])
def test_a_directory_becomes_an_image(
    source: Path, tmp_path: Path, call: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(call)
    image = tmp_path / "image"
    assert call(["--print-digest", str(source), str(image)]) == 0
    found = fsverity.digest(image.read_bytes(), Algorithm.SHA256).hex()
    assert capsys.readouterr() == (f"{found}\n", "")
    large = fsverity.digest(CONTENT, Algorithm.SHA256)
    status = source.stat()
    owner = f"{status.st_uid} {status.st_gid} 0 1000.0"
    assert dump(image).decode().splitlines() == [
        f"/ 0 40755 3 {owner} - - -",
        f"/directory\\x20with\\x20space 0 40755 2 {owner} - - -",
        f"/directory\\x20with\\x20space/link 8 120777 1 {owner} a\\x20target - -",
        f"/large {len(CONTENT)} 100644 1 {owner} {large.path} - {large}",
        f"/small 5 100644 1 {owner} - small -",
    ]


def test_the_digest_alone_needs_no_image_path(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mkcomposefs.main(["--print-digest-only", str(source)]) == 0
    (found,) = capsys.readouterr().out.split()
    assert len(bytes.fromhex(found)) == 32
    assert sorted(os.listdir(source.parent)) == ["source"]


def test_a_dump_file_gives_the_image_that_it_was_made_from(source: Path, tmp_path: Path) -> None:
    first, second, text = tmp_path / "first", tmp_path / "second", tmp_path / "dump"
    assert mkcomposefs.main([str(source), str(first)]) == 0
    text.write_bytes(dump(first))
    assert mkcomposefs.main(["--from-file", str(text), str(second)]) == 0
    assert second.read_bytes() == first.read_bytes()


def test_standard_input_and_output_are_dashes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        def __init__(self, content: bytes = b"") -> None:
            self.buffer = io.BytesIO(content)

        def flush(self) -> None:
            pass

    out = Stream()
    monkeypatch.setattr(sys, "stdin", Stream(b"/ 0 40755 2 0 0 0 0.0 - - -\n"))
    monkeypatch.setattr(sys, "stdout", out)
    assert mkcomposefs.main(["--from-file", "-", "-"]) == 0
    assert b"".join(write_dump(image_to_tree(out.buffer.getvalue()))) == b"/ 0 40755 2 0 0 0 0.0 - - -\n"


@pytest.mark.parametrize(
    ("options", "version"),
    [
        ([], 0),
        (["--min-version=1"], 1),
        (["--min-version", "1", "--max-version=1"], 1),
        (["--erofs-version=1"], 1),
        (["--erofs-version=2"], 2),
    ],
)
def test_options_choose_the_layout(source: Path, tmp_path: Path, options: list[str], version: int) -> None:
    assert mkcomposefs.main([*options, str(source), str(tmp_path / "image")]) == 0
    assert image_info((tmp_path / "image").read_bytes()).version == version


@pytest.mark.parametrize("name", ["sha512", "fsverity-sha512-12"])
def test_the_algorithm_can_be_chosen(
    source: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "image"
    arguments = [f"--algorithm={name}", "--print-digest", f"--digest-store={tmp_path / 'store'}"]
    assert mkcomposefs.main([*arguments, str(source), str(image)]) == 0
    assert capsys.readouterr().out == f"{fsverity.digest(image.read_bytes(), Algorithm.SHA512)}\n"
    assert (tmp_path / "store" / fsverity.digest(CONTENT, Algorithm.SHA512).path).read_bytes() == CONTENT


def test_a_digest_store_keeps_what_is_there(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "new" / "store"
    for _ in range(2):
        assert mkcomposefs.main([f"--digest-store={store}", str(source), str(tmp_path / "image")]) == 0
    large = store / fsverity.digest(CONTENT, Algorithm.SHA256).path
    assert [path for path in store.rglob("*") if path.is_file()] == [large]
    assert (large.read_bytes(), stat.S_IMODE(large.stat().st_mode)) == (CONTENT, 0o644)


WRONG = [
    ([], "No source path specified\nUsage: mkcomposefs "),
    (["a"], "No destination path specified\nUsage: mkcomposefs "),
    (["a", "b", "c"], "Too many arguments\nUsage: mkcomposefs "),
    (["--print-digest-only", "a", "b"], "Cannot specify destination path with --print-digest-only\nUsage: "),
    (["--bogus", "a", "b"], "mkcomposefs: option --bogus not recognized\nUsage: mkcomposefs "),
    (["--threads"], "option needs a value\n"),
    (["--threads=x", "a", "b"], "Invalid threads count x\n"),
    (["--threads=0", "a", "b"], "Invalid threads count 0\n"),
    (["--min-version=-1", "a", "b"], "Invalid min version -1\n"),
    (["--max-version=" + "9" * 5000, "a", "b"], "Invalid max version 9"),
    (["--algorithm=md5", "a", "b"], "Invalid algorithm md5: "),
    (["--user-xattrs", "--skip-xattrs", "a", "b"], "mkcomposefs: --user-xattrs and --skip-xattrs exclude"),
    (["missing", "b"], "mkcomposefs: missing: No such file or directory\n"),
    (["--from-file", "missing", "b"], "mkcomposefs: missing: No such file or directory\n"),
    (["--from-file", "bad", "b"], "mkcomposefs: line 2: "),
    (["--max-version=7", "source", "b"], "mkcomposefs: there is no layout 7, only 0 and 1\n"),
    (["--erofs-version=3", "source", "b"], "mkcomposefs: there is no layout 3, only 0, 1 and 2"),
    (["source", "missing/b"], "mkcomposefs: missing/b: No such file or directory\n"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG)
@pytest.mark.usefixtures("source")
def test_wrong_use_is_an_error(
    tmp_path: Path, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad").write_bytes(b"/ 0 40755 2 0 0 0 0.0 - - -\nnonsense\n")
    assert mkcomposefs.main(arguments) == 1
    output = capsys.readouterr()
    assert (output.out, output.err[: len(said)]) == ("", said)
    assert not Path("b").exists()


@pytest.mark.parametrize(("name", "usage"), [("mkcomposefs", "Usage: mkcomposefs"), ("composefs-info", "usage: compo")])
def test_a_program_called_by_their_name_is_that_program(
    name: str, usage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"/usr/bin/{name}", "--help"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(usage)


CALLED = "import sys; from composefs_async import cli; sys.argv = sys.argv[1:]; cli.main()"


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("mkcomposefs --print-digest-only source >/dev/full", 1, "standard output: No space left on device"),
        ("mkcomposefs source - >/dev/full", 1, "standard output: No space left on device"),
        ("mkcomposefs source /dev/full", 1, "/dev/full: No space left on device"),
        ("mkcomposefs --from-file - out <&-", 1, "standard input: Bad file descriptor"),
        ("mkcomposefs source - | :", 141, ""),
        ("composefs-info dump image >/dev/full", 1, "standard output: No space left on device"),
        ("composefs-info measure-file image >/dev/full", 1, "standard output: No space left on device"),
        ("composefs-info measure-file image >&-", 1, "standard output: Bad file descriptor"),
        ("composefs-info dump image | :", 141, ""),
    ],
)
@pytest.mark.usefixtures("image")
def test_output_that_cannot_be_written_ends_them(tmp_path: Path, command: str, code: int, said: str) -> None:
    name, _, rest = command.partition(" ")
    script = f'set -o pipefail; "$0" -W error -c "$1" {name} {rest}'
    done = subprocess.run(
        ["bash", "-c", script, sys.executable, CALLED], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == (f"{name}: {said}\n" if said else "")


# -- composefs-info ----------------------------------------------------------------------------


@pytest.fixture
def image(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert mkcomposefs.main(["--digest-store=store", str(source), "image"]) == 0
    return tmp_path / "image"


LARGE = fsverity.digest(CONTENT, Algorithm.SHA256)


@pytest.mark.parametrize(
    ("arguments", "out"),
    [
        (
            ["ls", "image"],
            f"/directory with space/\t\n/directory with space/link\t-> a\\x20target\n/large\t@ {LARGE.path}\n/small\n",
        ),
        (["--filter=small", "ls", "image"], "/small\n"),
        (["ls", "--filter", "large", "--filter", "small", "image"], f"/large\t@ {LARGE.path}\n/small\n"),
        (["objects", "image", "image"], f"{LARGE.path}\n"),
        (["missing-objects", "image"], f"{LARGE.path}\n"),
        (["--basedir=store", "missing-objects", "image"], ""),
        (["measure-file", "source/large"], f"{LARGE}\n"),
        (["--algorithm=sha512", "measure-file", "source/large"], f"{fsverity.digest(CONTENT, Algorithm.SHA512)}\n"),
    ],
)
@pytest.mark.usefixtures("image")
def test_info_prints_what_is_in_an_image(
    arguments: list[str], out: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert composefs_info.main(arguments) == 0
    assert capsysbinary.readouterr() == (out.encode(), b"")


def test_info_dumps_attributes_as_the_image_stores_them(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    lines = [
        b"/ 4096 40755 3 0 0 0 1.0 - - - security.selinux=l",
        b"/b %d 40755 2 0 0 0 1.0 - - - %bsecurity.selinux=l",
        b"/b/gone 0 20000 1 0 0 0 1.0 - - -",
        b"/b/x 3 100644 1 0 0 0 1.0 - abc - trusted.overlay.mine=1 user.a=own security.selinux=l",
    ]
    given = b"\n".join(lines) % (0, b"user.z=own ") + b"\n"
    (tmp_path / "dump").write_bytes(given)
    assert mkcomposefs.main(["--from-file", str(tmp_path / "dump"), str(tmp_path / "image")]) == 0
    assert composefs_info.main(["dump", str(tmp_path / "image")]) == 0
    # Attributes that others have, too, come last, and a directory with a whiteout is marked as opaque.
    opaque = b"trusted.overlay.opaque=x user.overlay.opaque=x user.z=own "
    assert capsysbinary.readouterr().out == b"\n".join(lines) % (56, opaque) + b"\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "No command specified\nusage: "),
        (["ls"], "No image path specified\nusage: "),
        (["measure-file"], "No files specified\nusage: "),
        (["bogus", "image"], "composefs-info: Unknown command 'bogus'\n"),
        (["--bogus", "ls", "image"], "composefs-info: option --bogus not recognized\nusage: "),
        (["--filter=a/b", "ls", "image"], "composefs-info: Filter must be a single name: a/b\n"),
        (["ls", "missing"], "composefs-info: Failed to open 'missing': No such file or directory\n"),
        (["measure-file", "missing"], "composefs-info: Failed to open 'missing': No such file or directory\n"),
        (["ls", "source/small"], "composefs-info: Failed to load 'source/small': 5 bytes are too short"),
        (["--basedir=missing", "missing-objects", "image"], "composefs-info: Can't open basedir `missing`: No such"),
        (["--basedir=", "missing-objects", "image"], "composefs-info: Can't open basedir ``: No such"),
    ],
)
@pytest.mark.usefixtures("image")
def test_wrong_use_of_info_is_an_error(
    arguments: list[str], said: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert composefs_info.main(arguments) == 1
    output = capsysbinary.readouterr()
    assert (output.out, output.err[: len(said)]) == (b"", said.encode())


def test_what_nobody_expects_is_told_in_one_line(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.delenv("COMPOSEFS_ASYNC_TRACEBACK", raising=False)
    monkeypatch.setattr(mkcomposefs, "_scanned", fail)
    assert mkcomposefs.main(["--print-digest-only", str(source)]) == 1
    assert capsys.readouterr() == ("", "mkcomposefs: MemoryError\n")
    monkeypatch.setenv("COMPOSEFS_ASYNC_TRACEBACK", "1")
    with pytest.raises(MemoryError):
        mkcomposefs.main(["--print-digest-only", str(source)])


def test_a_complaint_that_nobody_can_read_changes_nothing(source: Path) -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "composefs_async", "mkcomposefs", "--no-such-option", str(source)]
        assert subprocess.run(command, stderr=full, check=False).returncode == 1
