"""Global options, help, errors and exit codes."""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from composefs_async import errors
from composefs_async.cli import exit_codes
from composefs_async.cli.app import app, oci
from composefs_async.repository import Repository

from .conftest import VECTORS

COMMANDS = [
    [],
    *([name] for name in app.list_commands(click.Context(app))),
    *(["oci", name] for name in oci.list_commands(click.Context(oci))),
]
LIKE_THE_C_PROGRAMS = {"mkcomposefs", "composefs-info"}
"""Commands whose options, help among them, are those of the programs of that name."""


# -- help --------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if not {*command} & LIKE_THE_C_PROGRAMS], ids=" ".join
)
def test_help_is_printed(command: list[str], option: str, cli: Any) -> None:
    text = cli(*command, option).good().text
    assert text.startswith(f"Usage: {' '.join(['composefs-async', *command])} ")
    assert "  -h, --help" in text


@pytest.mark.parametrize("command", COMMANDS[1:], ids=" ".join)
def test_every_command_says_what_it_does(command: list[str], cli: Any) -> None:
    context = click.Context(app, info_name="composefs-async")
    if len(command) == 2:
        context = click.Context(oci, info_name="oci", parent=context)
    assert isinstance(context.command, click.Group)
    made = context.command.get_command(context, command[-1])
    assert made is not None
    assert made.name == command[-1]
    assert (made.help or "")[:1].isupper()


def test_help_of_the_program_has_all_commands_and_exit_codes(cli: Any) -> None:
    text = cli("--help").good().text
    for name in app.list_commands(click.Context(app)):
        assert re.search(rf"^  {name} +[A-Z]", text, re.MULTILINE)
    for code, meaning in exit_codes.TABLE:
        assert f"{code:>3}  {meaning}" in text


@pytest.mark.parametrize("command", [[], ["oci"]], ids=["program", "group"])
def test_no_command_prints_the_help_as_an_error(command: list[str], cli: Any) -> None:
    found = cli(*command)
    assert (found.code, found.out) == (2, b"")
    assert found.err == cli(*command, "--help").text


def test_version_is_printed(cli: Any) -> None:
    assert re.fullmatch(r"composefs-async [0-9.]+\S*\n", cli("--version").good().text)


def test_help_imports_little() -> None:
    """What a shell completion or a usage error costs."""
    script = "import sys; from composefs_async.cli.app import run; run(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    for heavy in ("anyio", "asyncio", "rich", "importlib.metadata", "ctypes", "composefs_async.repository"):
        assert f"'{heavy}'" not in done.stdout


@pytest.mark.parametrize("arguments", [["mkcomposefs"], ["composefs-async", "mkcomposefs"]], ids=" ".join)
def test_mkcomposefs_imports_little(arguments: list[str], tmp_path: Path) -> None:
    """An image of a thousand files takes less time than importing click."""
    (tmp_path / "dump").write_bytes(b"/ 0 40755 2 0 0 0 0.0 - - -\n")
    script = "import sys, atexit; sys.argv = sys.argv[1:]; atexit.register(lambda: print(sorted(sys.modules)));"
    script += "from composefs_async.cli import main; main()"
    command = [sys.executable, "-c", script, *arguments, "--from-file", "dump", "image"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    for heavy in ("click", "dataclasses", "hashlib", "json", "composefs_async._native"):
        assert f"'{heavy}'" not in done.stdout
    assert "'composefs_async.erofs.writer'" in done.stdout


# -- wrong arguments ---------------------------------------------------------------------------

DIGEST = "sha256:" + "0" * 64
LAYOUTS = Path(__file__).parent.parent / "vectors" / "layouts"
BASIC_LAYER = "sha256:58cc8208b729c9aa23e4ffc045b6eb3176d5b01c5fb2b8fe1877cbf311c5a495"
WRONG: list[tuple[list[str], list[str]]] = [
    (["nonsense"], ["No such command 'nonsense'", "'composefs-async --help'"]),
    (["doctro"], ["Did you mean 'doctor'?"]),
    (["oci", "pul"], ["Did you mean 'pull'?", "'composefs-async oci --help'"]),
    (["oci", "imagse"], ["'images'"]),
    (["pul"], ["Did you mean 'composefs-async oci pull' or"]),
    (["rmi", "x"], ["Did you mean 'composefs-async oci untag'?"]),
    (["image", "ls"], ["Did you mean 'composefs-async oci images'?"]),
    (["image", "rm", "x"], ["Did you mean 'composefs-async oci untag'?"]),
    (["unmount", "x"], ["Did you mean 'umount'?"]),
    (["list-tags", "x"], ["Did you mean 'composefs-async oci tags'?"]),
    (["oci", "ls"], ["Did you mean 'images'?"]),
    (["oci", "rmi", "x"], ["Did you mean 'untag'?"]),
    (["oci", "gc"], ["Did you mean 'composefs-async gc' or"]),
    (["oci", "umount", "x"], ["Did you mean 'composefs-async umount'?"]),
    (["oci", "pull", "alpine"], ["Did you mean 'docker://docker.io/library/alpine'?"]),
    (["oci", "pull", "quay.io/x/y:1"], ["Did you mean 'docker://quay.io/x/y:1'?"]),
    (["oci", "pull", "localhost:5000/y"], ["Did you mean 'docker://localhost:5000/y'?"]),
    (["oci", "pull", "ostree-unverified-registry:quay.io/x/y"], ["Did you mean 'docker://quay.io/x/y'?"]),
    (["init", "-n"], ["--dry-run goes with --reset-metadata"]),
    (["--rep", "x", "cat", "y"], ["No such option '--rep'", "--repo"]),
    (["oci", "images", "--jso"], ["--json", "'composefs-async oci images --help'"]),
    (["--repo"], ["--repo", "requires an argument"]),
    (["--repo", "", "doctor"], ["--repo is empty"]),
    (["--loop", "curio", "doctor"], ["--loop", "'curio'", "'trio'"]),
    (["--hash", "md5", "doctor"], ["--hash", "'md5'", "'sha512'"]),
    (["cat"], ["Missing argument 'IMAGE|STREAM'"]),
    (["cat", "a", "b", "c"], ["unexpected extra argument"]),
    (["cp", "a", "b"], ["'a' is not IMAGE:PATH"]),
    (["init", "--algorithm", "sha256"], ["--algorithm", "fsverity-"]),
    (["--nosuch"], ["No such option '--nosuch'"]),
    (["init", "--erofs-version", "3"], ["--erofs-version", "3"]),
    (["init", ""], ["PATH is empty"]),
    (["--repo", "x", "init", "y"], ["PATH excludes --repo"]),
    (["--hash", "sha256", "init", "--algorithm", "fsverity-sha512-12", "x"], ["--algorithm and --hash"]),
    (["doctor", "/does/not/exist"], ["/does/not/exist", "does not exist"]),
    (["doctor", __file__], ["is a file"]),
    (["oci", "layer", "nope"], ["LAYER", "'nope'"]),
    (["oci", "ls-layer", DIGEST.upper()], ["LAYER"]),
    (["oci", "layer", DIGEST, "--json", "--dumpfile"], ["--dumpfile and --json exclude each other"]),
    (["oci", "pull", "ftp://busybox"], ["ftp://busybox", "oci:"]),
    (["oci", "pull", "oci:"], ["the directory is missing"]),
    (["oci", "pull", "oci:x@sha256:12"], ["sha256:12"]),
    (["oci", "pull", "oci:x", "--platform", "linux///"], ["--platform", "OS/ARCHITECTURE"]),
    (["oci", "pull", "oci:x", "--platform", ""], ["--platform"]),
    (["oci", "pull", "oci:x", "--progress", "loud"], ["--progress", "'json'"]),
    (["oci", "pull", "oci:x", "--max-ratio", "0.5"], ["--max-ratio"]),
    (["oci", "pull", "oci:x", "--max-file-size", "0"], ["--max-file-size"]),
    (["oci", "import-layer", "x"], ["DIFF_ID"]),
    *(
        ([*given, "doctor"], ["--repo, --user and --system exclude each other"])
        for given in (["--repo", "x", "--user"], ["--repo", "x", "--system"], ["--user", "--system"])
    ),
]


@pytest.mark.parametrize("command", [["init"], ["oci", "images"], ["oci", "pull", "oci:x"]], ids=" ".join)
@pytest.mark.parametrize("option", ["--repo", "--user", "--loop"])
def test_global_options_behind_the_command_are_told_where_they_belong(
    command: list[str], option: str, cli: Any
) -> None:
    told = cli(*command, option, "x").failed(2).err
    assert told == f"composefs-async: {option} belongs before the command: composefs-async {option} …\n"


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=lambda value: " ".join(value)[:50])
def test_wrong_arguments_are_told_in_one_line(
    arguments: list[str], words: list[str], cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cli(*arguments).failed(2, " --help'", *words)
    assert list(tmp_path.iterdir()) == []


# -- which repository --------------------------------------------------------------------------


def test_repository_comes_from_the_environment_unless_an_option_names_one(
    cli: Any, pulled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPOSEFS_ASYNC_REPO", str(pulled))
    assert "COMPOSEFS_ASYNC_REPO" in cli("--help").text
    assert "basic" in cli("oci", "images").good().text
    cli("--repo", tmp_path / "other", "oci", "images").failed(6, f"init {tmp_path / 'other'}")
    cli("init", tmp_path / "new", "--insecure").good()
    monkeypatch.setenv("COMPOSEFS_ASYNC_REPO", str(tmp_path / "gone"))
    cli("oci", "images").failed(6, str(tmp_path / "gone"), "COMPOSEFS_ASYNC_REPO names it", "composefs-async init")
    assert f"at {tmp_path / 'gone'}\n" in cli("init", "--insecure").good().text
    cli("--no-repo", "oci", "images").failed(2, "--no-repo")


@pytest.mark.parametrize(("option", "command"), [([], "init"), (["--user"], "--user init")], ids=["default", "user"])
def test_missing_repository_is_told_with_the_command_that_makes_it(
    option: list[str], command: str, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    told = cli(*option, "oci", "images").failed(6, "is not a composefs repository").err
    assert told.endswith(f"; to make one: composefs-async {command}\n")
    assert ("--repo or COMPOSEFS_ASYNC_REPO chooses another" in told) == (not option)


# -- event loops -------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["auto", "asyncio", "uvloop", "trio"])
def test_every_event_loop_imports(loop: str, cli: Any, empty: Path) -> None:
    if loop in ("uvloop", "trio") and importlib.util.find_spec(loop) is None:
        pytest.skip(f"{loop} is not installed")
    cli("--loop", loop, "--repo", empty, "oci", "pull", f"oci:{LAYOUTS}/one", "one").good()
    assert (empty / "streams/refs/oci/one").resolve(strict=True).is_relative_to(empty / "objects")


@pytest.mark.parametrize("loop", ["uvloop", "trio"])
def test_event_loop_that_is_not_installed_is_named(
    loop: str, cli: Any, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = cli("--loop", loop, "--repo", empty, "oci", "pull", f"oci:{LAYOUTS}/one")
    told = found.failed(2, f"--loop {loop}", "not installed").err
    assert not (empty / "streams/refs/oci").exists(), told


# -- errors ------------------------------------------------------------------------------------

ERRORS: list[tuple[BaseException, int, str]] = [
    (errors.InvalidNameError("a/b", "no"), 2, "invalid name 'a/b': no"),
    (errors.ObjectNotFoundError("ab"), 3, "object not found: ab"),
    (errors.StreamNotFoundError("ab"), 3, "stream not found: ab"),
    (errors.ImageNotFoundError("ab"), 3, "image not found: ab"),
    (errors.ImageNotFoundError("ab", reason="why"), 3, "image not found: ab: why"),
    (errors.DigestMismatchError("x", "a", "b"), 4, "x: expected digest a, found b"),
    (errors.VerityMissingError("x"), 4, "x is not protected"),
    (errors.VerityNotSupportedError("x"), 4, "the file system of x"),
    (errors.SplitstreamError("bad", 7), 5, "bad (splitstream offset 7)"),
    (errors.OciError("x", "bad"), 5, "x: bad"),
    (errors.DumpfileError("bad", 3), 5, "line 3: bad"),
    (errors.RepositoryNotFoundError("/r"), 6, "/r is not a composefs repository"),
    (errors.MetadataError("/r", "bad"), 6, "/r: bad"),
    (errors.UnsupportedFeatureError("/r", ("new",)), 6, "/r needs features"),
    (errors.AlgorithmMismatchError("x", "a", "b"), 6, "x uses b, expected a"),
    (errors.ReadOnlyRepositoryError("/r", "why"), 7, "/r is read-only: why"),
    (OSError(errno.EROFS, "Read-only file system", "/r"), 7, "/r: Read-only file system"),
    (errors.RepositoryInUseError("/r", "gc"), 8, "/r is in use"),
    (errors.RegistryError("x", 404, "no"), 9, "x: the registry answered 404 no"),
    (errors.AuthenticationError("refused"), 9, "access to refused is refused"),
    (errors.MountError(errno.EPERM, "/x", "said"), 10, "mounting /x: Operation not permitted (said)"),
    (OSError(errno.ENOSPC, "No space left on device", "/r/objects"), 1, "/r/objects: No space left on device"),
    (OSError(errno.ENOSPC, "No space left on device"), 1, "oci images: No space left on device"),
    (PermissionError(errno.EACCES, "Permission denied", b"/\xff"), 11, "/\N{REPLACEMENT CHARACTER}: Permission denied"),
    (OSError("just words"), 1, "OSError: just words"),
    (KeyError("x"), 1, "KeyError: 'x'"),
    (RuntimeError(), 1, "RuntimeError"),
    (MemoryError(), 1, "MemoryError"),
    (RecursionError("too deep"), 1, "RecursionError: too deep"),
    (errors.OciError("x", "two\nlines \x1b[31m\udcff"), 5, "x: two lines \\x1b[31m\\udcff"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (click.Abort(), 130, "interrupted"),
    (click.ClickException("plain"), 1, "plain"),
    (ExceptionGroup("all", [errors.OciError("x", "bad")]), 5, "x: bad\n"),
    (ExceptionGroup("all", [errors.OciError("x", "bad"), ValueError("y")]), 5, "x: bad (and 1 more)\n"),
    (BaseExceptionGroup("all", [BaseExceptionGroup("in", [KeyboardInterrupt()]), ValueError()]), 130, "interrupted"),
]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Lets ``oci images`` fail in the way given."""

    def install(error: BaseException) -> None:
        def fail(*arguments: object, **options: object) -> Any:
            raise error

        monkeypatch.setattr(Repository, "open_path", fail)

    return install


@pytest.mark.parametrize(("error", "code", "text"), ERRORS, ids=lambda value: str(value)[:40])
def test_every_error_is_one_line_and_has_its_code(
    error: BaseException, code: int, text: str, cli: Any, failing: Callable[[BaseException], None]
) -> None:
    failing(error)
    assert cli("oci", "images").failed(code).err.startswith(f"composefs-async: {text}")


def test_every_exit_code_is_in_the_table_and_reached() -> None:
    codes = {code for _, code, _ in ERRORS}
    assert codes | {0, exit_codes.BROKEN_PIPE} == {code for code, _ in exit_codes.TABLE}
    assert len(exit_codes.TABLE) == len({code for code, _ in exit_codes.TABLE})


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_of_the_package_has_a_code_of_its_own_kind(name: str) -> None:
    kind = getattr(errors, name)
    if name in ("ComposefsError", "FormatError", "MountError", "PolicyError"):
        return
    assert exit_codes.exit_code(kind.__new__(kind)) != 1


@pytest.mark.parametrize(("command", "what"), [(["gc"], "gc"), (["oci", "images"], "oci images")])
def test_error_without_a_path_names_the_command(
    command: list[str], what: str, cli: Any, failing: Callable[[BaseException], None]
) -> None:
    failing(OSError(errno.EIO, "Input/output error"))
    cli(*command).failed(1, f"composefs-async: {what}: Input/output error")


@pytest.mark.parametrize("limit", [9, 11, 13, 14, 15, 16])
def test_few_descriptors_are_told_with_what_was_attempted(limit: int, empty: Path, program: Callable[..., Any]) -> None:
    source = f"oci:{Path(__file__).parent.parent}/vectors/layouts/basic:latest"
    command = ["--repo", empty, "oci", "pull", source, "x", "--platform=linux/amd64", "--progress=none"]
    done = program(*command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)))
    ours = [line for line in done.err.splitlines() if line.startswith("composefs-async: ")]
    reason = rf"Too many open files( \(\w+\))? \(the limit is {limit}; ulimit -n raises it\)"
    assert len(ours) == (done.code != 0)
    assert all(re.fullmatch(rf"composefs-async: (oci pull|/\S+): {reason}", line) for line in ours), ours


def test_broken_pipe_is_quiet(cli: Any, failing: Callable[[BaseException], None]) -> None:
    failing(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    found = cli("oci", "images")
    assert (found.code, found.out, found.err) == (141, b"", "")


def test_traceback_is_given_when_asked_for(
    cli: Any, failing: Callable[[BaseException], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPOSEFS_ASYNC_TRACEBACK", "1")
    failing(KeyError("x"))
    with pytest.raises(KeyError):
        cli("oci", "images")


# -- as a program ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [["oci", "layer"], ["oci", "layer", "--dumpfile"], ["oci", "ls-layer", "--json"]], ids=" ".join
)
def test_reader_that_leaves_is_no_error(command: list[str], repo: Path) -> None:
    # What fits in the pipe may have been written before the reader left.
    assert _read_one_byte(["--repo", str(repo), *command, BASIC_LAYER]) in ((0, b""), (141, b""))


def test_reader_that_leaves_before_text_is_no_error(repo: Path) -> None:
    assert _read_one_byte(["--repo", str(repo), "oci", "images"], before=True) == (141, b"")


def _read_one_byte(arguments: list[str], before: bool = False) -> tuple[int, bytes]:
    """Exit code and what is told."""
    reader, writer = os.pipe()
    if before:
        os.close(reader)
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "composefs_async", *arguments], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    if not before:
        assert len(os.read(reader, 1)) == 1
        os.close(reader)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.parametrize(
    "command", [["oci", "images"], ["cat", "refs/oci/basic"], ["doctor"], ["--help"]], ids=" ".join
)
def test_full_disk_behind_the_output_is_told_once(command: list[str], repo: Path, program: Callable[..., Any]) -> None:
    with open("/dev/full", "wb") as full:
        told = program("--repo", repo, *command, stdout=full).failed(1).err
    assert told.removeprefix("composefs-async: ") in (
        "standard output: No space left on device\n",
        "No space left on device\n",
    )


@pytest.mark.parametrize(
    "command", ["cat refs/oci/basic", "oci images", "oci images --json", "doctor", "--help"], ids=str
)
def test_closed_output_is_told(command: str, repo: Path) -> None:
    script = f'exec "{sys.executable}" -W error -m composefs_async --repo "{repo}" {command} >&-'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"composefs-async: (standard output: )?Bad file descriptor\n", done.stderr)


def test_closed_output_does_not_matter_to_who_prints_nothing(empty: Path) -> None:
    script = f'exec "{sys.executable}" -W error -m composefs_async --repo "{empty}" oci dump x 2>&- >&-'
    assert subprocess.run(["sh", "-c", script], check=False).returncode == 3


def test_lock_on_another_file_of_the_repository_does_not_count(empty: Path, program: Callable[..., Any]) -> None:
    with (empty / "meta.json").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert program("--repo", empty, "oci", "images").good().text == "No images found\n"


def test_module_and_script_are_the_same_program(program: Callable[..., Any]) -> None:
    assert program("--version").good().out.startswith(b"composefs-async ")
    assert program("oci", "pul").failed(2, "'pull'")


def test_locale_does_not_matter(repo: Path, program: Callable[..., Any]) -> None:
    environment = {**os.environ, "LC_ALL": "C"}
    program("--repo", repo, "oci", "tag", _manifest(repo, "basic"), "naïve \U0001f600").good()
    found = program("--repo", repo, "oci", "images", "--json", env=environment).good().json
    assert "naïve \U0001f600" in [image["name"] for image in found["images"]]
    program("--repo", repo, "oci", "images", env=environment).good()


def _manifest(repo: Path, tag: str) -> str:
    return os.readlink(repo / "streams" / "refs" / "oci" / tag).rpartition("oci-manifest-")[2]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_interrupt_ends_an_import_that_waits_for_input(loop: str, empty: Path) -> None:
    if loop != "asyncio" and importlib.util.find_spec(loop) is None:
        pytest.skip(f"{loop} is not installed")
    command = [sys.executable, "-W", "error", "-m", "composefs_async", "--loop", loop, "--repo", str(empty)]
    command += ["oci", "import-layer", "--progress", "json", DIGEST]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert json.loads(process.stderr.readline())["event"] == "layer-started"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().splitlines()[-1] == "composefs-async: interrupted"
        assert process.wait(60) == 130


def test_shell_completion_knows_the_commands(program: Callable[..., Any]) -> None:
    environment = {
        **os.environ,
        "_COMPOSEFS_ASYNC_COMPLETE": "bash_complete",
        "COMP_WORDS": "composefs-async oci i",
        "COMP_CWORD": "2",
    }
    assert (
        program(env=environment).good().text
        == "plain,images\nplain,inspect\nplain,index-contents\nplain,import-layer\n"
    )


# -- how much is said --------------------------------------------------------------------------


def test_quiet_leaves_results_and_errors(empty: Path, cli: Any) -> None:
    quiet = cli.on(empty)
    layout = VECTORS / "layouts" / "basic"
    made = quiet("--quiet", "oci", "pull", f"oci:{layout}", "basic").good()
    assert (made.out, made.err) == (b"", "")
    assert "basic" in quiet("-q", "oci", "images").good().text
    collected = quiet("-q", "gc").good()
    assert (collected.out, collected.err) == (b"", "")
    quiet("-q", "oci", "inspect", "nothing").failed(3, "nothing")


def test_verbose_tells_what_is_done_and_only_then(empty: Path, cli: Any) -> None:
    layout = VECTORS / "layouts" / "basic"
    on = cli.on(empty)
    assert "composefs_async" not in on("oci", "pull", f"oci:{layout}", "first").good().err
    told = on("-v", "oci", "pull", f"oci:{layout}", "second").good().err
    assert f"INFO composefs_async.repository: {empty}: published " in told
    assert "INFO" not in on("oci", "pull", f"oci:{layout}", "third").good().err
