"""The program as a whole: options, errors and exit codes, and how it behaves as a process."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from composefs_async import errors
from composefs_async.cli import exit_codes

Cli = Callable[..., Any]

VECTORS = Path(__file__).parents[2] / "vectors"
DIFF_ID = f"sha256:{'0' * 64}"
BASIC = "sha256:58cc8208b729c9aa23e4ffc045b6eb3176d5b01c5fb2b8fe1877cbf311c5a495"


def program(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "composefs_async", *arguments]
    options = {"capture_output": True, "text": True, "timeout": 60} | options
    return subprocess.run(command, check=False, **options)


# -- arguments -----------------------------------------------------------------------------------

USAGE = {
    "no command": ([], "Usage: composefs-async"),
    "unknown command": (["nosuch"], "composefs-async: No such command 'nosuch'; see 'composefs-async --help'"),
    "unknown subcommand": (["oci", "x"], "composefs-async: No such command 'x'; see 'composefs-async oci --help'"),
    "unknown option": (["--nosuch"], "composefs-async: No such option"),
    "two places": (
        ["--repo", "r", "--user", "oci", "images"],
        "composefs-async: --repo, --user and --system exclude each other; see 'composefs-async --help'",
    ),
    "unknown hash": (["--hash", "md5", "oci", "images"], "composefs-async: Invalid value for '--hash'"),
    "malformed digest": (
        ["oci", "layer", "sha256:xyz"],
        "composefs-async: Invalid value for 'DIFF_ID': not a content digest: 'sha256:xyz'; "
        "see 'composefs-async oci layer --help'",
    ),
    "malformed algorithm": (
        ["init", "r", "--algorithm", "sha512"],
        "composefs-async: Invalid value for '--algorithm': algorithm must start with 'fsverity-'; "
        "see 'composefs-async init --help'",
    ),
    "contradiction": (
        ["--hash", "sha256", "init", "r", "--algorithm", "fsverity-sha512-12"],
        "composefs-async: --algorithm and --hash contradict each other; see 'composefs-async init --help'",
    ),
    "malformed platform": (["oci", "pull", "oci:x", "--platform", "linux"], "composefs-async: Invalid value for"),
    "missing argument": (["oci", "pull"], "composefs-async: Missing argument 'IMAGE'"),
    "tag that is none": (["--repo", "EMPTY", "oci", "pull", "oci:x", ".."], "composefs-async: invalid name '..'"),
}


@pytest.mark.parametrize("case", USAGE)
def test_wrong_arguments_are_one_line_and_code_2(cli: Cli, empty: Path, case: str) -> None:
    arguments, expected = USAGE[case]
    result = cli(*(str(empty) if argument == "EMPTY" else argument for argument in arguments))
    assert (result.code, result.output) == (2, "")
    assert result.error.startswith(expected)
    assert result.error.count("\n") == 1 or case == "no command"
    assert not Path("r").exists()


def test_help_lists_every_command_and_exit_code(cli: Cli) -> None:
    result = cli("--help")
    assert (result.code, result.error) == (0, "")
    assert [line for line in result.output.splitlines() if line.startswith("     ")][-len(exit_codes.TABLE) :]
    for code, meaning in exit_codes.TABLE:
        assert f"{code:>5}  {meaning}\n" in result.output
    for group, commands in {"": ["init", "oci", "cat", "demo", "doctor"], "oci": ["pull", "images", "layer"]}.items():
        listing = cli(*filter(None, [group]), "--help").output
        for command in commands:
            assert f"\n  {command} " in listing
            assert cli(*filter(None, [group, command]), "--help").output.startswith("Usage: composefs-async")


def test_version_is_printed(cli: Cli) -> None:
    assert cli("--version").output == "composefs-async 0.1.0\n"


# -- exit codes ------------------------------------------------------------------------------------

ERRORS: dict[str, tuple[BaseException, int, str]] = {
    "object": (errors.ObjectNotFoundError("ab"), 3, "object not found: ab"),
    "stream": (errors.StreamNotFoundError("s"), 3, "stream not found: s"),
    "image": (errors.ImageNotFoundError("i"), 3, "image not found: i"),
    "digest": (errors.DigestMismatchError("x", "a", "b"), 4, "x: expected digest a, found b"),
    "verity": (errors.VerityMissingError("x"), 4, "x is not protected by fs-verity, which this repository requires"),
    "splitstream": (errors.SplitstreamError("bad", 7), 5, "bad (splitstream offset 7)"),
    "document": (errors.OciError("index", "bad"), 5, "index: bad"),
    "no repository": (errors.RepositoryNotFoundError("r"), 6, "r is not a composefs repository: there is no meta.json"),
    "algorithm": (errors.AlgorithmMismatchError("r", "a", "b"), 6, "r uses b, expected a"),
    "read-only": (errors.ReadOnlyRepositoryError("r", "no"), 7, "r is read-only: no"),
    "read-only mount": (OSError(errno.EROFS, "Read-only file system", "f"), 7, "f: Read-only file system"),
    "in use": (
        errors.RepositoryInUseError("r", "gc"),
        8,
        "r is in use: gc needs it alone; try again when the others have finished",
    ),
    "registry": (errors.RegistryError("x", 500, "oops"), 9, "x: the registry answered 500 oops"),
    "mount": (errors.MountError(errno.EPERM, "m", "log"), 10, "mounting m: Operation not permitted (log)"),
    "name": (errors.InvalidNameError("..", "no"), 2, "invalid name '..': no"),
    "disk full": (OSError(errno.ENOSPC, "No space left on device", "f"), 1, "f: No space left on device"),
    "no file": (OSError(errno.EACCES, "Permission denied"), 1, "Permission denied"),
    "bytes": (OSError(errno.EACCES, "Permission denied", b"\xff"), 1, "\ufffd: Permission denied"),
    "unforeseen": (ZeroDivisionError("x"), 1, "ZeroDivisionError: x"),
    "silent": (ZeroDivisionError(), 1, "ZeroDivisionError"),
    "lines": (errors.OciError("a\nb", "c\x1b"), 5, "a b: c\\x1b"),
    "group": (
        ExceptionGroup("g", [ExceptionGroup("h", [errors.OciError("a", "b")]), OSError(5, "x")]),
        5,
        "a: b (and 1 more)",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_each_error_has_its_code_and_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    error, code, text = ERRORS[case]

    def fail(settings: object) -> None:
        raise error

    monkeypatch.setattr("composefs_async.cli.context.Settings.open", fail)
    result = cli("oci", "images")
    assert (result.code, result.output, result.error) == (code, "", f"composefs-async: {text}\n")


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "Broken pipe"), KeyboardInterrupt()])
def test_who_goes_away_is_not_told_why(cli: Cli, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(settings: object) -> None:
        raise BaseExceptionGroup("g", [error])

    monkeypatch.setattr("composefs_async.cli.context.Settings.open", fail)
    monkeypatch.setattr("composefs_async.cli.app._drop_output", lambda: None)  # the output is pytest's
    result = cli("oci", "images")
    expected = {141: "", 130: "composefs-async: interrupted\n"}
    assert result.error == expected[result.code]
    assert result.code == (141 if isinstance(error, BrokenPipeError) else 130)


def test_each_exit_code_is_in_the_table_once() -> None:
    codes = [code for code, _ in exit_codes.TABLE]
    assert codes == sorted(set(codes)) == [*range(11), 130, 141]


def test_every_error_class_has_a_code_of_its_own() -> None:
    kinds = [getattr(errors, name) for name in errors.__all__ if name != "ComposefsError"]
    unlisted = [kind for kind in kinds if exit_codes.exit_code(kind.__new__(kind)) == 1]
    assert unlisted == []


# -- repositories ------------------------------------------------------------------------------------


def test_init_says_what_it_made(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "deep/er/repo"
    first = cli("init", path, "--insecure", "--algorithm", "fsverity-sha256-12", "--erofs-version", "2")
    assert (first.code, first.output) == (
        0,
        f"Initialized composefs repository at {path}\n  algorithm: fsverity-sha256-12\n"
        "  verity:    not required (insecure)\n",
    )
    second = cli("--hash", "sha256", "--repo", path, "init", "--insecure", "--erofs-version", "2")
    assert (second.code, second.output) == (0, f"Repository already initialized at {path}\n")
    assert cli("--repo", path, "init", "--insecure").code == 6
    kept = cli("--repo", path, "--hash=sha256", "init", "--ensure", "--json")
    expected = {"path": str(path), "created": False, "algorithm": "fsverity-sha256-12", "verity": False}
    assert (kept.code, kept.json) == (0, expected)


def test_places_are_found(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    place = tmp_path / ".var/lib/composefs"
    assert cli("--user", "init", "--insecure").output.startswith(f"Initialized composefs repository at {place}\n")
    assert cli("--user", "oci", "images").output == "No images found\n"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cli("oci", "images").output == "No images found\n"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("composefs_async._repo.opening.system_path", lambda: str(tmp_path / "system"))
    for arguments in (["oci", "images"], ["--system", "oci", "images"]):
        result = cli(*arguments)
        assert (result.code, result.error.split(" is not")[0]) == (6, f"composefs-async: {tmp_path / 'system'}")


def test_an_algorithm_or_security_that_is_asked_for_is_insisted_on(cli: Cli, empty: Path) -> None:
    assert cli("--repo", empty, "--hash", "sha512", "oci", "images").code == 0
    assert cli("--repo", empty, "--hash", "sha256", "oci", "images").code == 6
    assert cli("--repo", empty, "--require-verity", "oci", "images").code == 4
    assert cli("--repo", empty, "--insecure", "oci", "images").code == 0


@pytest.mark.parametrize("loop", ["auto", "asyncio", "uvloop", "trio"])
def test_every_event_loop_pulls(cli: Cli, empty: Path, loop: str) -> None:
    pytest.importorskip(loop if loop != "auto" else "asyncio")
    source = f"oci:{VECTORS}/layouts/basic:latest"
    result = cli("--loop", loop, "--repo", empty, "oci", "pull", source, "--platform=linux/amd64", "--progress=none")
    assert (result.code, result.error) == (0, "")
    assert result.output.splitlines() == [
        "manifest sha256:8e66440a93d68590e713aa309c3bc6651670904597e64480b0acccc87cb89f21",
        "config   sha256:f307ac2405c186e69cbfc6bd14e3b10d6c3e9e8c6156e2b9151d541ff2b18d71",
        "verity   ad1aeed6e016f0d2c7d4fff47d251ea53d2b6e7f5791dd9d74d4b8cecfe83140"
        "f06597f89318da1419c3c0635a11df915812c86a3d5ad7a051fd443cce2e7193",
        f"tagged   {source}",
        "objects  11 new + 0 already present objects; 87.34 KiB stored, 32.66 KiB inlined",
    ]


def test_pulling_again_is_told_in_plain_lines(cli: Cli, pulled: Path) -> None:
    source = f"oci:{VECTORS}/layouts/basic:latest"
    result = cli("--repo", pulled, "oci", "pull", source, "basic", "--json", "--platform=linux/amd64")
    assert result.json["stats"]["layers_present"] == 2
    assert result.json["layers"][0]["diffId"] == BASIC
    assert sorted(result.error.splitlines()) == [
        f"{source}: 2 layers, 88.14 KiB",
        "sha256:58cc8208b729: present",
        "sha256:a5fc8bdfb062: present",
        "tagged basic",
    ]


def test_bars_are_for_terminals_but_can_be_had(cli: Cli, empty: Path) -> None:
    result = cli(
        "--repo",
        empty,
        "oci",
        "pull",
        f"oci:{VECTORS}/layouts/basic:latest",
        "--platform=linux/amd64",
        "--progress=bars",
    )
    assert result.code == 0
    assert "sha256:58cc8208b729" in result.error
    assert result.output.startswith("manifest sha256:")


def test_damage_is_found_and_nothing_is_tagged(cli: Cli, empty: Path, copied_layouts: Path) -> None:
    blobs = sorted((copied_layouts / "basic/blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(blobs[-1].read_bytes())
    content[len(content) // 2] ^= 1
    blobs[-1].write_bytes(content)
    result = cli("--repo", empty, "oci", "pull", f"oci:{copied_layouts}/basic:latest", "--progress=none")
    assert (result.code in (4, 5), result.output, result.error.count("\n")) == (True, "", 1)
    assert cli("--repo", empty, "oci", "images").output == "No images found\n"


# -- as a process ------------------------------------------------------------------------------------


def test_a_full_disk_is_reported(empty: Path) -> None:
    with open("/dev/full", "w") as full:
        done = program("--repo", empty, "oci", "images", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, "composefs-async: No space left on device\n")


def test_a_reader_that_has_gone_ends_it_quietly(pulled: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for arguments in (["oci", "images"], ["oci", "layer", BASIC], ["--help"]):
        done = program("--repo", pulled, *arguments, capture_output=False, stdout=writer, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (141, "")
    os.close(writer)


def test_an_interrupt_ends_an_import_that_waits_for_its_input(empty: Path) -> None:
    command = [sys.executable, "-m", "composefs_async", "--repo", str(empty), "oci", "import-layer", DIFF_ID]
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [*command, "--progress=json"], stdin=reader, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    os.close(reader)
    assert process.stderr is not None
    assert "layer-started" in process.stderr.readline()  # it runs, and asks for input
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=60)
    os.close(writer)
    assert (process.returncode, output, error) == (130, "", "composefs-async: interrupted\n")


def test_help_imports_neither_an_event_loop_nor_rich() -> None:
    code = (
        "import sys; from composefs_async.cli.app import run; run(['--help'])\n"
        "print(sorted({'anyio', 'asyncio', 'rich', 'importlib.metadata', 'hashlib', 'ctypes'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] in ("[]", "['hashlib']")


def test_a_repository_held_by_somebody_else_is_waited_for(empty: Path) -> None:
    with open(empty / "meta.json") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # not the lock that counts
        assert program("--repo", empty, "oci", "images").stdout == "No images found\n"
