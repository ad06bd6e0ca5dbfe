"""Commands on trees and EROFS images, as users call them."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from composefs_async import fsverity
from composefs_async._repo.metadata import ErofsFormats
from composefs_async.cli.app import run
from composefs_async.digest import Algorithm, ObjectId
from composefs_async.erofs.writer import build_image
from composefs_async.repository import Repository
from composefs_async.tree import Directory, ExternalFile, InlineFile, Symlink
from composefs_async.tree.dumpfile import parse_dump
from composefs_async.tree.dumpwriter import write_dump

pytestmark = pytest.mark.usefixtures("no_leaks")

LARGE = b"large content\n" * 100
TIME = 1_000_000_007_000_000_009

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(params=["sha256", "sha512"])
def algorithm(request: pytest.FixtureRequest) -> Algorithm:
    return Algorithm(request.param)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a small system."""
    top = tmp_path / "source"
    (top / "usr" / "bin").mkdir(parents=True)
    (top / "run" / "lost").mkdir(parents=True)
    (top / "usr" / "bin" / "large").write_bytes(LARGE)
    os.link(top / "usr" / "bin" / "large", top / "usr" / "bin" / "again")
    (top / "small").write_bytes(b"small")
    (top / "usr" / "link").symlink_to("bin/large")
    for path in (*top.rglob("*"), top):
        os.utime(path, ns=(0, TIME), follow_symlinks=False)
    monkeypatch.chdir(tmp_path)
    return top


@pytest.fixture
def call(source: Path, tmp_path: Path, algorithm: Algorithm, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command on the repository ``repo``; gives exit code, output and errors."""
    repo = Repository.init(tmp_path / "repo", algorithm=algorithm, insecure=True)
    repo.close()

    def invoke(*arguments: str) -> tuple[int, str, str]:
        code = run(["--repo", str(tmp_path / "repo"), *arguments])
        return code, *capfd.readouterr()

    return invoke


def expected_tree(algorithm: Algorithm) -> Directory:
    """What create-image makes of the source."""
    user, group = os.geteuid(), os.getegid()
    common = 1, user, group, TIME, ()
    large = ExternalFile(0o100644, 2, *common[1:], len(LARGE), fsverity.digest(LARGE, algorithm))
    binary = Directory(0o40755, 2, *common[1:], {b"large": large, b"again": large})
    usr = Directory(0o40755, 3, *common[1:], {b"bin": binary, b"link": Symlink(0o120777, *common, b"bin/large")})
    run_directory = Directory(0o40755, 2, *common[1:])
    small = InlineFile(0o100644, *common, b"small")
    return Directory(0o40755, 4, *common[1:], {b"usr": usr, b"run": run_directory, b"small": small})


def expected_id(algorithm: Algorithm, version: int = 1) -> ObjectId:
    return fsverity.digest(build_image(expected_tree(algorithm), algorithm, version), algorithm)


TABLE = """\
┌────────┬──────────────┐
│ NAME   ┆ DIGEST       │
╞════════╪══════════════╡
│ os/new ┆ %s │
└────────┴──────────────┘"""


def test_create_image_stores_the_files_and_names_the_image(call: Run, algorithm: Algorithm, tmp_path: Path) -> None:
    image_id = expected_id(algorithm)
    assert call("create-image", "source", "os/new") == (0, f"{image_id.text}\n", "")
    with Repository.open_path(tmp_path / "repo") as repo:
        assert repo.has_image("refs/os/new") == image_id
        assert repo.read_object(fsverity.digest(LARGE, algorithm)) == LARGE
    assert call("images") == (0, f"{TABLE}\n" % image_id.hex()[:12], "")
    assert f"│ os/new ┆ {image_id} │" in call("images", "--no-trunc")[1].splitlines()
    listed = json.loads(call("images", "--json")[1])
    assert listed == {"images": [{"name": "os/new", "digest": image_id.hex()}]}


def test_create_image_makes_one_in_each_layout_of_the_repository(
    call: Run, algorithm: Algorithm, tmp_path: Path
) -> None:
    path = tmp_path / "dual"
    Repository.init(path, algorithm=algorithm, erofs_version=ErofsFormats(2, (1,)), insecure=True).close()
    assert call("--repo", str(path), "create-image", "source", "name")[1] == f"{expected_id(algorithm, 2).text}\n"
    with Repository.open_path(path) as repo:
        assert repo.has_image("name") == expected_id(algorithm, 2)
        assert repo.has_image(expected_id(algorithm, 1).hex())


def test_images_says_when_there_is_none(call: Run) -> None:
    assert call("images") == (0, "No images found\n", "")
    assert json.loads(call("images", "--json")[1]) == {"images": []}


def test_compute_id_is_what_create_image_prints(call: Run, algorithm: Algorithm) -> None:
    assert call("compute-id", "source") == (0, f"{expected_id(algorithm)}\n", "")
    for version in (0, 1, 2):
        text = call("compute-id", "source", "--erofs-version", str(version))[1]
        assert text == f"{expected_id(algorithm, version)}\n"
    assert call("create-image", "source")[1] == f"{expected_id(algorithm).text}\n"


def test_compute_id_needs_no_repository(
    source: Path, tmp_path: Path, algorithm: Algorithm, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["--hash", algorithm.value, "compute-id", str(source)]) == 0
    assert capfd.readouterr() == (f"{expected_id(algorithm)}\n", "")
    assert run(["--repo", str(tmp_path / "missing"), "compute-id", str(source)]) == 6


def test_create_dumpfile_prints_the_tree(call: Run, algorithm: Algorithm) -> None:
    expected = b"".join(write_dump(expected_tree(algorithm))).decode()
    assert call("create-dumpfile", "source") == (0, expected, "")


def test_a_directory_can_be_taken_as_it_is(call: Run) -> None:
    text = call("create-dumpfile", "--no-propagate-usr-to-root", "source")[1]
    assert "/run/lost " in text
    assert parse_dump(text.encode()).nlink == 4


def test_import_image_takes_what_another_repository_has(
    call: Run, algorithm: Algorithm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = build_image(expected_tree(algorithm), algorithm, 2)

    class Input:
        buffer = io.BytesIO(image)

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr(sys, "stdin", Input())
    image_id = fsverity.digest(image, algorithm)
    assert call("import-image", "copy") == (0, f"{image_id.text}\n", "")
    assert call("image-objects", "copy") == (0, f"{fsverity.digest(LARGE, algorithm).text}\n", "")
    monkeypatch.setattr(Input, "buffer", io.BytesIO(b"no image"))
    assert call("import-image", "bad")[0] == 5
    with Repository.open_path(tmp_path / "repo") as repo:
        assert repo.named_images() == [("copy", image_id.hex())]


def test_dump_files_prints_lines_of_what_is_asked_for(call: Run, algorithm: Algorithm) -> None:
    call("create-image", "source", "name")
    whole = b"".join(write_dump(expected_tree(algorithm))).decode().splitlines(keepends=True)
    below_usr = "".join(line for line in whole if line.startswith("/usr"))
    again = next(line for line in whole if line.startswith("/usr/bin/again "))
    # Of several names the first one that is asked for is no link.
    linked = again.replace("again", "large", 1)
    expected = f"{below_usr}{linked}"
    assert call("dump-files", "name", "/usr", "/usr/bin/large") == (0, expected, "")
    assert call("dump-files", "refs/name", "/") == (0, "".join(whole), "")
    assert call("dump-files", expected_id(algorithm).hex(), "small")[1].startswith("small 5 100644 1 ")


def test_dump_files_prints_where_content_is(call: Run, algorithm: Algorithm) -> None:
    call("create-image", "source", "name")
    place = fsverity.digest(LARGE, algorithm).path
    found = call("dump-files", "--backing-path-only", "name", "/usr/bin/large", "/small", "/usr/link")
    assert found == (0, f"/usr/bin/large {place}\n/small inline\n/usr/link inline\n", "")
    assert call("dump-files", "--backing-path-only", "name", "/usr")[0] == 2


def test_ls_lists_directories_and_files(call: Run) -> None:
    call("create-image", "source", "name")
    owner, time = f"{os.geteuid():>5} {os.getegid():>5}", "2001-09-09 01:46:47"
    rows = {
        "run": f"drwxr-xr-x   2 {owner} {'':>10} {time} run",
        "small": f"-rw-r--r--   1 {owner} {5:>10} {time} small",
        "usr": f"drwxr-xr-x   3 {owner} {'':>10} {time} usr",
    }
    assert call("ls", "name") == (0, "\n".join(rows.values()) + "\n", "")
    assert call("ls", "name", ".")[1] == call("ls", "name", "/./")[1] == call("ls", "name")[1]
    assert call("ls", "name", "small") == (0, f"{rows['small']}\n", "")
    assert call("ls", "name", "/usr")[1].splitlines() == [
        f"drwxr-xr-x   2 {owner} {'':>10} {time} bin",
        f"lrwxrwxrwx   1 {owner} {'':>10} {time} link -> bin/large",
    ]
    names = [line.partition(f"{time} ")[2].partition(" -> ")[0] for line in call("ls", "-R", "name")[1].splitlines()]
    assert names == [".", "run", "small", "usr", "usr/bin", "usr/bin/again", "usr/bin/large", "usr/link"]


def test_tree_draws_what_ls_lists(call: Run) -> None:
    call("create-image", "source", "name")
    code, output, error = call("tree", "name")
    large = re.sub(r".*large", "", next(line for line in output.splitlines() if "large (" in line))
    assert (code, error) == (0, "")
    assert output.splitlines() == [
        "/",
        "├── run/",
        "├── small (5 B)",
        "└── usr/",
        "    ├── bin/",
        f"    │   ├── again{large}",
        f"    │   └── large{large}",
        "    └── link -> bin/large",
        "",
        "3 directories, 4 files",
    ]
    assert "again" not in call("tree", "name", "-L", "2")[1]
    assert call("tree", "name", "usr/bin")[1].splitlines()[0] == "usr/bin"


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["ls", "name", "/missing"], 3, "file not found: /missing"),
        (["ls", "missing"], 3, "image not found: missing"),
        (["image-objects", "missing"], 3, "image not found: missing"),
        (["dump-files", "name", "missing"], 3, "file not found: missing"),
        (["mount", "missing", "source"], 3, "image not found: missing"),
        (["mount", "../name", "source"], 2, "invalid name"),
        (["mount", "--read-write", "name", "source"], 2, "--read-write needs --upperdir and --workdir"),
        (["mount", "--upperdir", "source", "name", "source"], 2, "--upperdir and --workdir are given both"),
        (["umount", "missing"], 10, "unmounting missing: No such file or directory\n"),
        (["create-image", "missing"], 2, "'missing' does not exist"),
        (["create-image", "source", "../name"], 2, "invalid name"),
        (["explain", "name"], 2, "either OTHER or --expected-digest is needed"),
        (["explain", "name", "--expected-digest", "12"], 2, "not an object id"),
        (["ls", "small.img"], 3, "image not found: small.img; the file of this name is ./small.img"),
        (["ls", "./small.img"], 5, "./small.img: 5 bytes are too short for an image"),
        (["ls", "name", ""], 2, "a path is empty"),
        (["oci", "mount", "missing", "source"], 3, "missing"),
        (["oci", "dump", "missing"], 3, "missing"),
        (["oci", "compute-id", "missing"], 3, "missing"),
    ],
)
def test_errors_have_their_exit_code(call: Run, arguments: list[str], code: int, error: str) -> None:
    call("create-image", "source", "name")
    Path("small.img").write_bytes(b"small")
    if arguments[0] == "umount" and os.geteuid() != 0:
        pytest.skip("unmounting needs root")
    found = call(*arguments)
    assert (found[0], found[1]) == (code, "")
    assert error in found[2]


# -- comparison --------------------------------------------------------------------------------


def test_diff_of_equal_trees_is_empty(call: Run) -> None:
    call("create-image", "source", "one")
    call("create-image", "source", "two")
    assert call("diff", "one", "two") == (0, "", "")


def test_diff_prints_each_path_that_differs(call: Run, source: Path) -> None:
    call("create-image", "source", "before")
    (source / "small").write_bytes(b"other")
    (source / "new\x1b").mkdir()
    (source / "usr" / "link").unlink()
    for path in (source / "small", source / "usr", source / "new\x1b", source):
        os.utime(path, ns=(0, TIME))
    call("create-image", "source", "after")
    assert call("diff", "before", "after") == (
        1,
        "+ /new\\x1b\n~ /small: content 'small' -> 'other'\n- /usr/link\n",
        "",
    )
    found = json.loads(call("diff", "--json", "before", "after")[1])["changes"]
    assert [(change["path"], change["kind"]) for change in found] == [
        ("/new\x1b", "added"),
        ("/small", "changed"),
        ("/usr/link", "removed"),
    ]
    assert found[1]["fields"] == [{"name": "content", "before": "small", "after": "other"}]


def test_files_and_directories_can_be_compared(call: Run, algorithm: Algorithm, tmp_path: Path) -> None:
    call("create-image", "source", "name", "--no-propagate-usr-to-root")
    (tmp_path / "dump").write_bytes(call("create-dumpfile", "source", "--no-propagate-usr-to-root")[1].encode())
    (tmp_path / "image").write_bytes(build_image(parse_dump((tmp_path / "dump").read_bytes()), algorithm, 2))
    for other in ("./source", "./dump"):
        assert call("diff", "name", other) == (0, "", "")
        assert call("diff", other, "name") == (0, "", "")
    changes = call("diff", "name", "./image")[1]
    assert changes.splitlines()[0] == f"~ /: mtime_ns {TIME} -> {TIME - 9}"


def test_explain_finds_the_layout(call: Run, algorithm: Algorithm) -> None:
    call("create-image", "source", "name")
    code, text, _ = call("explain", "name", "--expected-digest", expected_id(algorithm, 2).hex())
    assert (code, "layout version 2" in text) == (0, True)
    found = json.loads(call("explain", "--json", "name", "--expected-digest", expected_id(algorithm, 0).hex())[1])
    assert [cause["name"] for cause in found["causes"]] == ["layout-0"]


def test_explain_finds_what_create_image_does(call: Run) -> None:
    call("create-image", "source", "name")
    assert call("explain", "name", "name") == (0, "the images are equal\n", "")
    code, text, _ = call("explain", "./source", "name")
    assert (code, "/run was emptied" in text) == (0, True)


def test_a_malformed_dump_file_is_named(call: Run) -> None:
    Path("dump").write_bytes(b"/ 0 40755 2 0 0 0 0.0 - - -\nnonsense\n")
    error = "composefs-async: ./dump: line 2: 1 fields, at least 8 are needed\n"
    assert call("diff", "./dump", "./source") == (5, "", error)


def test_a_dump_file_says_by_which_algorithm_a_directory_is_digested(call: Run, algorithm: Algorithm) -> None:
    dump = call("create-dumpfile", "source", "--no-propagate-usr-to-root")[1].encode()
    Path("dump").write_bytes(dump)
    # Not through a repository, which would tell.
    assert run(["diff", "./dump", "./source"]) == 0
    assert run(["diff", "./source", "./dump"]) == 0


def test_images_by_different_algorithms_are_not_explained(call: Run, algorithm: Algorithm) -> None:
    call("create-image", "source", "name")
    (other,) = set(Algorithm) - {algorithm}
    Path("image").write_bytes(build_image(expected_tree(other), other))
    for arguments in (["name", "./image"], ["name", "--expected-digest", "00" * other.digest_size]):
        code, out, error = call("explain", *arguments)
        assert (code, out) == (2, "")
        assert f"the algorithms differ, {algorithm.value} and {other.value}" in error


def test_a_bad_name_is_refused_before_anything_is_stored(call: Run, tmp_path: Path) -> None:
    assert call("create-image", "source", "../name")[0] == 2
    assert os.listdir(tmp_path / "repo") == ["meta.json"]


def test_explain_says_when_it_knows_no_cause(call: Run, algorithm: Algorithm) -> None:
    call("create-image", "source", "name")
    code, text, _ = call("explain", "name", "--expected-digest", "00" * algorithm.digest_size)
    assert (code, text.startswith("no known cause makes the images equal")) == (1, True)


# -- mounts ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("may_mount")
def test_mount_and_umount(call: Run, tmp_path: Path) -> None:
    call("create-image", "source", "name")
    place = tmp_path / "place"
    place.mkdir()
    assert call("mount", "name", "place") == (0, "", "")
    assert (place / "usr" / "bin" / "large").read_bytes() == LARGE
    assert call("umount", "place") == (0, "", "")
    assert os.listdir(place) == []
    code, _, error = call("umount", "place")
    assert (code, "nothing is mounted there" in error) == (10, True)


@pytest.mark.usefixtures("may_mount")
def test_a_mount_can_be_changed_and_removed_while_it_is_used(call: Run, tmp_path: Path) -> None:
    call("create-image", "source", "name")
    for name in ("place", "upper", "work"):
        (tmp_path / name).mkdir()
    options = ("--upperdir", "upper", "--workdir", "work")
    assert call("mount", "name", "place", *options, "--read-write") == (0, "", "")
    with open(tmp_path / "place" / "small", "wb") as file:
        file.write(b"changed")
        file.flush()
        code, _, error = call("umount", "place")
        assert (code, "unmounting place: Device or resource busy (something still uses it" in error) == (10, True)
        assert call("umount", "--lazy", "place") == (0, "", "")
    assert (tmp_path / "upper" / "small").read_bytes() == b"changed"
    assert call("mount", "name", "place", *options) == (0, "", "")
    try:
        assert (tmp_path / "place" / "small").read_bytes() == b"changed"
        with pytest.raises(OSError, match="Read-only"):
            (tmp_path / "place" / "small").write_bytes(b"again")
    finally:
        call("umount", "place")


def test_owners_are_mapped(call: Run, tmp_path: Path, user_namespace: str) -> None:
    call("create-image", "source", "name")
    (tmp_path / "place").mkdir()
    assert call("mount", "name", "place", "--idmap", user_namespace) == (0, "", "")
    try:
        assert os.stat(tmp_path / "place" / "small").st_uid == 1000
    finally:
        call("umount", "place")
    code, _, error = call("mount", "name", "place", "--idmap", "repo/meta.json")
    assert (code, "the descriptor is of no user namespace" in error) == (10, True)


def test_a_tag_is_taken_where_no_image_has_the_name(cli: Any, pulled: Path) -> None:
    on = cli.on(pulled)
    assert on("ls", "basic").good().out == on("ls", "tag:basic").good().out
    assert on("tree", "basic").good().out == on("tree", "tag:basic").good().out
    assert on("diff", "basic", "tag:basic").good().out == b""
    assert on("dump-files", "basic", "/").good().out == on("dump-files", "tag:basic", "/").good().out
    on("ls", "nothing").failed(3, "image not found: nothing")
