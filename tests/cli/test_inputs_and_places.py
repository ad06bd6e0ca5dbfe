"""Where bytes come from and go to: pipes, files, terminals, places without permission."""

from __future__ import annotations

import hashlib
import os
import pty
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

LAYOUTS = Path(__file__).parent.parent / "vectors" / "layouts"
BASIC = "sha256:58cc8208b729c9aa23e4ffc045b6eb3176d5b01c5fb2b8fe1877cbf311c5a495"
BASIC_MANIFEST = "sha256:8e66440a93d68590e713aa309c3bc6651670904597e64480b0acccc87cb89f21"
PACKED = LAYOUTS / "basic/blobs/sha256/373391aedf9d65ebb4c5c628859ad2d728a1158c3712d168a2ead75e8ee6423c"
LOOPS = ["asyncio", "uvloop", "trio"]

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody else, which only root can")


# -- layers out --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["basic", "one"])
def test_layer_is_bit_exact_through_a_pipe_and_a_file(
    case: str, repo: Path, tmp_path: Path, cli: Any, program: Callable[..., Any]
) -> None:
    config = cli.on(repo)("oci", "inspect", case, "--config").json
    for diff_id in config["rootfs"]["diff_ids"]:
        assert f"sha256:{hashlib.sha256(program('--repo', repo, 'oci', 'layer', diff_id).out).hexdigest()}" == diff_id
        with (tmp_path / "tar").open("wb") as file:
            program("--repo", repo, "oci", "layer", diff_id, stdout=file).good()
        assert f"sha256:{hashlib.sha256((tmp_path / 'tar').read_bytes()).hexdigest()}" == diff_id


@pytest.mark.parametrize(
    ("arguments", "refused"), [([], True), (["--json"], False), (["--dumpfile"], False)], ids=["tar", "json", "dump"]
)
def test_only_the_tar_is_not_for_a_terminal(
    arguments: list[str], refused: bool, repo: Path, program: Callable[..., Any]
) -> None:
    leader, follower = pty.openpty()
    try:
        found = program("--repo", repo, "oci", "layer", BASIC, *arguments, stdout=follower)
        if refused:
            found.failed(2, "a tar is not for a terminal", "--json", "--dumpfile")
        else:
            assert (found.code, found.err) == (0, "")
            assert os.read(leader, 1) in (b"{", b"/")
    finally:
        os.close(leader)
        os.close(follower)


# -- layers in ---------------------------------------------------------------------------------


def unpacked(repo: Path, program: Callable[..., Any]) -> bytes:
    content: bytes = program("--repo", repo, "oci", "layer", BASIC).good().out
    return content


@pytest.mark.parametrize("loop", LOOPS)
def test_layer_comes_in_through_a_pipe(loop: str, repo: Path, empty: Path, program: Callable[..., Any]) -> None:
    pytest.importorskip(loop)
    for content in (unpacked(repo, program), PACKED.read_bytes()):
        target = Path(shutil.copytree(empty, empty.parent / f"copy-{len(content)}"))
        program("--loop", loop, "--repo", target, "oci", "import-layer", BASIC, "mine", input=content).good()
        assert program("--repo", target, "cat", "refs/mine").good().out == unpacked(repo, program)


def test_layer_comes_in_from_a_file(empty: Path, program: Callable[..., Any]) -> None:
    with PACKED.open("rb") as file:
        found = program("--repo", empty, "oci", "import-layer", "--json", BASIC, stdin=file).good()
    assert (found.json["diffId"], found.json["present"], found.json["stats"]["bytes_read"]) == (
        BASIC,
        False,
        PACKED.stat().st_size,
    )
    assert set(found.json) == {"diffId", "verity", "present", "stats"}


def test_file_is_read_from_where_it_stands(tmp_path: Path, empty: Path, program: Callable[..., Any]) -> None:
    (tmp_path / "file").write_bytes(b"header" + PACKED.read_bytes())
    with (tmp_path / "file").open("rb", buffering=0) as file:
        file.seek(6)
        program("--repo", empty, "oci", "import-layer", BASIC, stdin=file).good()


@pytest.mark.parametrize("size", [0, 100, 50_000])
def test_layer_that_ends_early_is_refused(size: int, repo: Path, empty: Path, program: Callable[..., Any]) -> None:
    content = unpacked(repo, program)[:size]
    found = program("--repo", empty, "oci", "import-layer", BASIC, input=content)
    assert (found.code in (4, 5), found.out, found.err.count("\n")) == (True, b"", 1), found.err
    program("--repo", empty, "oci", "layer", BASIC).failed(3, BASIC)


def test_input_that_is_a_terminal_or_closed_is_refused(empty: Path, program: Callable[..., Any]) -> None:
    leader, follower = pty.openpty()
    try:
        program("--repo", empty, "oci", "import-layer", BASIC, stdin=follower).failed(2, "a terminal")
    finally:
        os.close(leader)
        os.close(follower)
    script = f'exec "{sys.executable}" -m composefs_async --repo "{empty}" oci import-layer {BASIC} <&-'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "closed" in done.stderr


@pytest.mark.parametrize("kind", ["auto", "bars", "json"])
def test_progress_that_nobody_can_see_does_not_matter(kind: str, empty: Path) -> None:
    arguments = f'--repo "{empty}" oci pull "oci:{LAYOUTS}/one" x --progress={kind}'
    script = f'exec "{sys.executable}" -W error -m composefs_async {arguments} 2>&-'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[3]) == (0, "tagged   x")


# -- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sha256:12", "@sha256:12", "@nope", "@", "sha512:" + "0" * 64])
def test_what_looks_like_a_digest_but_is_none_is_a_wrong_argument(name: str, repo: Path, cli: Any) -> None:
    cli.on(repo)("oci", "inspect", name).failed(2, name, "it is no content digest")


@pytest.mark.parametrize("command", [["oci", "inspect"], ["oci", "untag"], ["cat"]], ids=" ".join)
@pytest.mark.parametrize(("name", "code"), [("nope", 3), ("", 2), ("..", 2), ("x" * 300, 2)])
def test_missing_and_impossible_names_differ(command: list[str], name: str, code: int, repo: Path, cli: Any) -> None:
    found = cli.on(repo)(*command, name).failed(code, name)
    if name == "nope":
        kind = {"inspect": "image", "untag": "tag", "cat": "stream"}[command[-1]]
        assert found.err == f"composefs-async: {kind} not found: nope\n"


def test_tag_that_looks_like_a_digest_is_found_first(repo: Path, cli: Any) -> None:
    cli.on(repo)("oci", "tag", BASIC_MANIFEST, "sha256:12").good()
    assert cli.on(repo)("oci", "inspect", "sha256:12").good().json == cli.on(repo)("oci", "inspect", "basic").json


@pytest.mark.parametrize(
    ("image", "code", "words"),
    [
        ("oci:/does/not/exist", 5, ["/does/not/exist"]),
        (f"oci:{LAYOUTS}/basic:nope", 5, ["nope", "latest"]),
        (f"oci:{LAYOUTS}/basic@{BASIC}", 9, [BASIC.removeprefix("sha256:"), "missing"]),
    ],
)
def test_image_that_is_not_there_is_named(image: str, code: int, words: list[str], empty: Path, cli: Any) -> None:
    cli.on(empty)("oci", "pull", image, "--progress", "none").failed(code, *words)


def test_platform_that_is_not_there_is_answered_with_those_that_are(empty: Path, cli: Any) -> None:
    found = cli.on(empty)("oci", "pull", f"oci:{LAYOUTS}/index", "--platform", "linux/mips", "--progress", "none")
    found.failed(5, "linux/mips", "linux/arm64", "linux/s390x")
    cli.on(empty)("oci", "pull", f"oci:{LAYOUTS}/index", "x", "--platform", "linux/s390x").good()
    (image,) = cli.on(empty)("oci", "images", "--json").json["images"]
    assert image["architecture"] == "s390x"


# -- progress ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["auto", "bars", "plain", "json", "none"])
def test_standard_output_is_the_same_whatever_progress_is_shown(kind: str, empty: Path, cli: Any) -> None:
    found = cli.on(empty)("oci", "pull", f"oci:{LAYOUTS}/one", "x", "--json", "--progress", kind).good()
    assert list(found.json) == ["manifest", "config", "verity", "tagged", "image", "layers", "stats"]
    assert found.json["tagged"] == "x"
    assert (found.err == "") is (kind == "none")


def test_plain_progress_ends_with_the_tag(empty: Path, cli: Any) -> None:
    lines = cli.on(empty)("oci", "pull", f"oci:{LAYOUTS}/basic", "x", "--progress", "plain").good().err.splitlines()
    assert lines[0].startswith(f"oci:{LAYOUTS}/basic: 2 layer")
    assert sorted(line.split(":")[1][:12] for line in lines[1:-2]) == ["58cc8208b729", "a5fc8bdfb062"]
    assert lines[-2].startswith("image 71c03a06a5c9: EROFS version 1, ")
    assert lines[-1] == "tagged x"


# -- permissions -------------------------------------------------------------------------------


AS_NOBODY = """
import os, sys
from composefs_async.cli.app import run
# First as root, so that all modules are there: the interpreter's files may be for root alone.
output, scratch = [os.dup(1), os.dup(2)], ["--repo", sys.argv[1]]
for fd in (1, 2):
    os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
for arguments in (["init", "--insecure"], ["oci", "pull", sys.argv[2], "x"], ["oci", "untag", "x"], ["oci", "images"]):
    assert run([*scratch, *arguments]) == 0
assert run(["doctor"]) == 0
for fd, former in enumerate(output, 1):
    os.dup2(former, fd)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sys.exit(run(sys.argv[3:]))
"""


@pytest.fixture
def nobody(tmp_path: Path, cli: Any) -> Callable[..., Any]:
    """Runs a command as a user without any rights."""
    kind = type(cli("--version"))

    def call(*arguments: object) -> Any:
        command = [sys.executable, "-c", AS_NOBODY, tmp_path / "scratch", f"oci:{LAYOUTS}/one", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
        return kind(done.returncode, done.stdout, done.stderr.decode())

    return call


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that anybody can look into."""
    path = Path(tempfile.mkdtemp(prefix="composefs-async-public-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@only_root
@pytest.mark.parametrize("command", [["oci", "pull", "LAYOUT"], ["oci", "untag", "basic"], ["oci", "tag", "M", "new"]])
def test_repository_of_somebody_else_is_read_but_not_written(
    command: list[str], public: Path, repo: Path, nobody: Callable[..., Any]
) -> None:
    theirs = Path(shutil.copytree(repo, public / "repo", symlinks=True))
    shutil.copytree(LAYOUTS / "plain_zstd", public / "layout")
    subprocess.run(["chmod", "-R", "a+rX", public], check=True)
    replaced = {"LAYOUT": f"oci:{public}/layout", "M": BASIC_MANIFEST}
    before = sorted(theirs.rglob("*"))
    found = nobody("--repo", theirs, *(replaced.get(word, word) for word in command))
    assert (found.code in (1, 7), found.out) == (True, b""), found
    assert found.err.startswith("composefs-async: ") or command[1] == "pull"
    assert "Permission denied" in found.err or "read-only" in found.err
    assert sorted(theirs.rglob("*")) == before


@only_root
def test_repository_that_must_not_be_seen_is_named(public: Path, repo: Path, nobody: Callable[..., Any]) -> None:
    hidden = Path(shutil.copytree(repo, public / "repo", symlinks=True))
    hidden.chmod(0o700)
    for command in (["--repo", hidden, "oci", "images"], ["doctor", hidden]):
        nobody(*command).failed(1, str(hidden), "Permission denied")
    nobody("--repo", public / "new", "init", "--insecure").failed(1, "Permission denied", str(public))


@only_root
def test_doctor_says_what_it_could_not_try(public: Path, nobody: Callable[..., Any]) -> None:
    found = nobody("doctor", public, "--json").good().json["filesystem"]
    assert (found["writable"], found["tmpfile"], found["verity"], found["reflink"]) == (False, None, None, None)
    lines = nobody("doctor", public).good().text.splitlines()
    words = {line[6:24].strip(): line[2:5].strip() for line in lines[1:5]}
    assert words == {"writable": "no", "O_TMPFILE": "?", "fs-verity": "?", "reflink": "?"}


# -- a repository comes into being -------------------------------------------------------------


def test_init_is_repeated_only_if_it_is_the_same(tmp_path: Path, cli: Any) -> None:
    path = tmp_path / "new" / "repo"
    first = cli("init", "--insecure", path).good()
    assert first.text.splitlines()[0] == f"Initialized composefs repository at {path}"
    assert cli("init", "--insecure", path).good().text == f"Repository already initialized at {path}\n"
    cli("init", path).failed(6, str(path), "insecure")
    cli("init", "--insecure", "--algorithm", "fsverity-sha256-12", path).failed(6, str(path), "different configuration")
    cli("init", "--insecure", "--erofs-version", "2", path).failed(6, str(path), "different configuration")
    cli("init", "--ensure", "--algorithm", "fsverity-sha256-12", path).failed(6, str(path), "sha512", "sha256")
    kept = cli("init", "--ensure", "--erofs-version", "2", path).good()
    assert kept.text == f"Repository already initialized at {path} (existing configuration preserved)\n"


def test_init_tells_the_same_as_json(tmp_path: Path, cli: Any) -> None:
    path = tmp_path / "repo"
    facts = {"path": str(path), "created": True, "algorithm": "fsverity-sha256-12", "verity": False}
    arguments = ["--repo", path, "init", "--insecure", "--algorithm", "fsverity-sha256-12", "--json"]
    assert cli(*arguments).good().json == facts
    assert cli(*arguments).good().json == {**facts, "created": False}


@pytest.mark.parametrize(("place", "code"), [("file", 6), ("file/below", 1)])
def test_init_where_a_file_is_fails(place: str, code: int, tmp_path: Path, cli: Any) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    cli("init", "--insecure", tmp_path / place).failed(code, f"{tmp_path}/file")
    assert (tmp_path / "file").read_bytes() == b"precious"
