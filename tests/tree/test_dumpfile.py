"""Dump files: what is read, what is refused, and that both directions agree."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from composefs_async.erofs.writer import Dialect, build_image, choose_version
from composefs_async.errors import DumpfileError, ErofsError
from composefs_async.tree import Directory, ExternalFile, InlineFile, Special, Symlink
from composefs_async.tree.dumpfile import parse_dump
from composefs_async.tree.dumpwriter import format_entry, format_link, write_dump
from composefs_async.tree.walk import find

VECTORS = Path(__file__).parents[1] / "vectors" / "image"
ROOT = b"/ 0 40755 2 0 0 0 0.0 - - -\n"
DIGEST = b"5a" * 32
PATH = b"5a/" + b"5a" * 31


def parse_line(line: bytes) -> object:
    return parse_dump(ROOT + line + b"\n").children[b"a"]


def fields(inode: object) -> dict[str, object]:
    return {
        name: getattr(inode, name)
        for kind in type(inode).__mro__[:-1]
        for name in kind.__slots__  # type: ignore[attr-defined]
    }


COMMON = {"mode": 0o100644, "nlink": 1, "uid": 2, "gid": 3, "mtime_ns": 4_000_000_005, "xattrs": ()}

LINES = {
    "inline": (b"/a 2 100644 1 2 3 0 4.5 - hi -", InlineFile, {"content": b"hi"}),
    "empty": (b"/a 0 100644 1 2 3 0 4.5 - - -", InlineFile, {"content": b""}),
    "lone dash": (b"/a 1 100644 1 2 3 0 4.5 - \\x2d -", InlineFile, {"content": b"-"}),
    "nul in content": (b"/a 1 100644 1 2 3 0 4.5 - \\x00 -", InlineFile, {"content": b"\0"}),
    "content beside payload": (b"/a 1 100644 1 2 3 0 4.5 x y %b" % DIGEST, InlineFile, {"content": b"y"}),
    "canonical": (
        b"/a 9 100644 1 2 3 0 4.5 %b - %b" % (PATH, DIGEST),
        ExternalFile,
        {"size": 9, "digest": b"\x5a" * 32, "payload": None},
    ),
    "other path": (
        b"/a 9 100644 1 2 3 0 4.5 some/path - %b" % DIGEST,
        ExternalFile,
        {"size": 9, "digest": b"\x5a" * 32, "payload": b"some/path"},
    ),
    "no path": (
        b"/a 9 100644 1 2 3 0 4.5 - - %b" % DIGEST,
        ExternalFile,
        {"size": 9, "digest": b"\x5a" * 32, "payload": b""},
    ),
    "external of size 0": (
        b"/a 0 100644 1 2 3 0 4.5 %b - %b" % (PATH, DIGEST),
        ExternalFile,
        {"size": 0, "digest": b"\x5a" * 32, "payload": None},
    ),
    "sha512": (
        b"/a 9 100644 1 2 3 0 4.5 5a/%b - %b" % (b"5a" * 63, b"5A" * 64),
        ExternalFile,
        {"size": 9, "digest": b"\x5a" * 64, "payload": b"5a/" + b"5a" * 63},
    ),
    "no verity": (
        b"/a 9 100644 1 2 3 0 4.5 %b - -" % PATH,
        ExternalFile,
        {"size": 9, "digest": None, "payload": PATH},
    ),
    "sparse": (b"/a 9 100644 1 2 3 0 4.5 - - -", ExternalFile, {"size": 9, "digest": None, "payload": None}),
    "symlink": (b"/a 0 120777 1 2 3 0 4.5 \\x2d\\n - -", Symlink, {"mode": 0o120777, "target": b"-\n"}),
    "device": (b"/a 0 60600 1 2 3 123 4.5 - - -", Special, {"mode": 0o60600, "rdev": 123, "size": 0}),
    "fifo with a device number": (b"/a 0 10600 1 2 3 123 4.5 - - -", Special, {"mode": 0o10600, "rdev": 0, "size": 0}),
    "fifo with content": (b"/a 2 10600 1 2 3 0 4.5 x hi q", Special, {"mode": 0o10600, "rdev": 0, "size": 2}),
    "socket": (b"/a 0 140600 1 2 3 0 4.5 - - -", Special, {"mode": 0o140600, "rdev": 0, "size": 0}),
    "before 1970": (b"/a 0 100644 1 2 3 0 -4.5 - - -", InlineFile, {"mtime_ns": -3_999_999_995, "content": b""}),
    "xattrs": (
        b"/a 0 100644 1 2 3 0 4.5 - - - user.b=- user.a=x\\x3dy=z user.b=",
        InlineFile,
        {"content": b"", "xattrs": ((b"user.a", b"x=y=z"), (b"user.b", b""))},
    ),
}


@pytest.mark.parametrize(("line", "kind", "wanted"), LINES.values(), ids=LINES)
def test_a_line_becomes_an_inode(line: bytes, kind: type, wanted: dict[str, object]) -> None:
    inode = parse_line(line)
    assert type(inode) is kind
    assert fields(inode) == COMMON | wanted


A = b"/a 0 100644 1 0 0 0 0.0 - - -"
B = A.replace(b" 0 ", b" 9 ", 1)

BAD = {
    "nothing": (b"", 1, "the first line must be the directory /"),
    "no root": (A, 1, "the first line must be the directory /"),
    "root is a file": (b"/ 0 100644 1 0 0 0 0.0 - - -", 1, "the first line must be the directory /"),
    "two roots": (ROOT * 2, 2, "invalid name ''"),
    "few fields": (ROOT + b"/a 0 100644", 2, "3 fields, at least 8 are needed"),
    "nul": (ROOT + A + b"\0", 2, "a NUL byte"),
    "twice": (ROOT + A + b"\n" + A, 3, "a second line for 'a'"),
    "no parent": (ROOT + b"/x" + A, 2, "there is no directory '/x' on an earlier line"),
    "file as parent": (ROOT + A + b"\n/a" + A, 3, "there is no directory '/a' on an earlier line"),
    "slash at the end": (ROOT + b"/a/ 0 40755 2 0 0 0 0.0 - - -", 2, "there is no directory '/a' on an earlier line"),
    "dot": (ROOT + A.replace(b"a", b".", 1), 2, "invalid name '.'"),
    "dots": (ROOT + A.replace(b"a", b"..", 1), 2, "invalid name '..'"),
    "long name": (ROOT + A.replace(b"a", b"n" * 256, 1), 2, f"invalid name '{'n' * 60}...'"),
    "nul in a name": (ROOT + A.replace(b"a", b"\\x00", 1), 2, "invalid name ''"),
    "escape": (ROOT + A.replace(b"a", b"\\q", 1), 2, "invalid escape \\q"),
    "escape cut short": (ROOT + A.replace(b"a", b"\\x4", 1), 2, "invalid escape \\x"),
    "size of a directory": (ROOT.replace(b" 0 ", b" x ", 1), 1, "invalid number 'x'"),
    "device number of a file": (ROOT + A.replace(b" 0 0.0", b" x 0.0"), 2, "invalid number 'x'"),
    "mode": (ROOT + A.replace(b"100644", b"100648"), 2, "invalid mode '100648'"),
    "mode of no kind": (ROOT + A.replace(b"100644", b"644"), 2, "invalid mode '644'"),
    "large mode": (ROOT + A.replace(b"100644", b"370644"), 2, "invalid mode '370644'"),
    "empty line": (ROOT + b"\n" + A, 2, "an empty line"),
    "empty line at the end": (ROOT + b"\n", 2, "an empty line"),
    "ten fields": (ROOT + b"/a 9 100644 1 0 0 0 0.0 x -", 2, "invalid digest ''"),
    "mode over 32 bits": (ROOT + A.replace(b"100644", b"7" * 12), 2, "invalid mode '777777777777'"),
    "time without nanoseconds": (ROOT + A.replace(b"0.0", b"0"), 2, "invalid number ''"),
    "nanoseconds": (
        ROOT + A.replace(b"0.0", b"0.1000000000"),
        2,
        "time '0.1000000000' has more nanoseconds than a second has",
    ),
    "short content": (
        ROOT + b"/a 3 100644 1 0 0 0 0.0 - hi -",
        2,
        "2 bytes of content for a size of 3, at most 5000",
    ),
    "long content": (
        ROOT + b"/a 5001 100644 1 0 0 0 0.0 - %b -" % (b"x" * 5001),
        2,
        "5001 bytes of content for a size of 5001, at most 5000",
    ),
    "content of a directory": (
        ROOT.replace(b"- -\n", b"abc -"),
        1,
        "3 bytes of content for a size of 0, at most 5000",
    ),
    "payload of a directory": (ROOT.replace(b"- - -", b"\\q - -"), 1, "invalid escape \\q"),
    "long payload": (ROOT + A[:-5] + b"p" * 4096 + b" - -", 2, "a payload of 4096 bytes, at most 4095"),
    "digest of a directory": (ROOT.replace(b" -\n", b" \\"), 1, "invalid escape \\"),
    "digest": (ROOT + B[:-1] + b"zz" * 32, 2, "invalid digest '" + "z" * 60 + "...'"),
    "short digest": (ROOT + B[:-1] + b"5a" * 31, 2, "invalid digest '" + "5a" * 30 + "...'"),
    "carriage return": (ROOT + B + b"\r", 2, "invalid digest '-\\r'"),
    "no target": (ROOT + A.replace(b"100644", b"120777"), 2, "the target of a link has 0 bytes, not 1 to 4095"),
    "attribute without value": (ROOT + A + b" user.a", 2, "invalid attribute 'user.a'"),
    "attribute without name": (ROOT + A + b" =x", 2, "invalid attribute '=x'"),
    "long attribute": (ROOT + A + b" " + b"n" * 256 + b"=", 2, "invalid attribute '" + "n" * 60 + "...'"),
    "link to nothing": (ROOT + b"/a 0 @120000 - - - - 0.0 /b - -", 2, "there is no file '/b' for the hard link"),
    "link without target": (
        ROOT + b"/a 0 @120000 - - - - 0.0 - - -",
        2,
        "the target of a link has 0 bytes, not 1 to 4095",
    ),
    "link to a directory": (ROOT + b"/a 0 @100644 - - - - 0.0 / - -", 2, "there is no file '/' for the hard link"),
    "link that is a directory": (ROOT + b"/a 0 @40755 - - - - 0.0 /b - -", 2, "invalid mode '@40755'"),
    "link to itself": (ROOT + b"/a 0 @100644 - - - - 0.0 /a - -", 2, "the hard link to '/a' leads to itself"),
    "links in a circle": (
        ROOT + b"/a 0 @100644 - - - - 0.0 /b - -\n/b 0 @100644 - - - - 0.0 /a - -",
        2,
        "the hard link to '/b' leads to itself",
    ),
}


@pytest.mark.parametrize(("data", "line", "reason"), BAD.values(), ids=BAD)
def test_malformed_input_is_refused_with_its_line(data: bytes, line: int, reason: str) -> None:
    with pytest.raises(DumpfileError) as caught:
        parse_dump(data)
    assert (caught.value.reason, caught.value.line) == (reason, line)


def test_lines_and_whole_files_give_the_same_tree() -> None:
    data = (VECTORS / "small-tree.dump").read_bytes()
    wanted = list(write_dump(parse_dump(data)))
    assert list(write_dump(parse_dump(data.splitlines(keepends=True)))) == wanted
    assert list(write_dump(parse_dump(iter(data.splitlines())))) == wanted
    with pytest.raises(DumpfileError, match="line 1: the first line must be"):
        parse_dump([])
    assert list(write_dump(parse_dump(data.rstrip()))) == wanted


@pytest.mark.parametrize(
    ("data", "digest"),
    [
        pytest.param(data.encode("latin1"), digest, id=name)
        for name, data, digest in json.loads((VECTORS.parent / "dump" / "lines.json").read_text())
    ],
)
def test_unusual_lines_make_the_image_that_mkcomposefs_makes_of_them(data: bytes, digest: str | None) -> None:
    try:
        root = parse_dump(data)
        made: str | None = hashlib.sha256(
            build_image(root, version=choose_version(root), dialect=Dialect.C)
        ).hexdigest()
    except (DumpfileError, ErofsError):
        made = None
    assert made == digest


def test_hard_links_may_come_first_and_lead_to_links() -> None:
    root = parse_dump((VECTORS / "hardlinks-forward-chain.dump").read_bytes())
    first, second, target = (root.children[name] for name in (b"a", b"b", b"z"))
    assert first is second is target
    assert type(target) is Symlink
    assert root.links == {b"a", b"b"}


def test_a_long_chain_of_hard_links_takes_linear_time() -> None:
    lines = [b"/n%d 0 @100644 - - - - 0.0 /n%d - -\n" % (number, number + 1) for number in range(50_000)]
    root = parse_dump(ROOT + b"".join(lines) + b"/n50000 0 100644 1 0 0 0 0.0 - - -\n")
    assert len(set(root.children.values())) == 1


def test_equal_attributes_share_one_tuple() -> None:
    root = parse_dump(ROOT + A + b" user.a=1\n" + A.replace(b"a", b"b", 1) + b" user.a=1\n")
    assert root.children[b"a"].xattrs is root.children[b"b"].xattrs


def test_a_tree_of_ten_thousand_levels_is_read_and_written() -> None:
    depth = 10_000
    paths = [b"/d" * level for level in range(1, depth + 1)]
    data = ROOT.replace(b" 2 ", b" 3 ") + b"".join(
        b"%b 0 40755 %d 0 0 0 0.0 - - -\n" % (path, 3 - (len(path) == 2 * depth)) for path in paths
    )
    root = parse_dump(data)
    assert isinstance(find(root, paths[-1]), Directory)
    assert b"".join(write_dump(root)) == data


@pytest.mark.parametrize("path", sorted(VECTORS.rglob("*.dump")), ids=lambda path: path.stem)
def test_golden_files_are_stable_once_written(path: Path) -> None:
    written = b"".join(write_dump(parse_dump(path.read_bytes())))
    assert b"".join(write_dump(parse_dump(written))) == written


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60, deadline=None)
@given(data=st.data())
def test_what_is_written_is_read_back(trees: st.SearchStrategy[Directory], data: st.DataObject) -> None:
    root = data.draw(trees)
    written = b"".join(write_dump(root))
    assert b"".join(write_dump(parse_dump(written))) == written


FIELDS = [b"/", b"/a", b"-", b"0", b"@0", b"40755", b"100644", b"\\x", b"0.0", b"a=b", b"\xff"]


@settings(max_examples=200, deadline=None)
@given(lines=st.lists(st.lists(st.sampled_from(FIELDS), max_size=13).map(b" ".join), max_size=6))
def test_no_input_raises_anything_but_a_dumpfile_error(lines: list[bytes]) -> None:
    line = 1
    try:
        parse_dump(b"\n".join([ROOT[:-1], *lines]))
    except DumpfileError as error:
        line = error.line
    assert 1 <= line <= len(lines) + 1


def test_the_form_is_that_of_composefs_rs() -> None:
    """Made by cfsctl 0.9.0 create-dumpfile, digests shortened to SHA-256 ones."""
    data = (
        b"/ 0 40755 3 0 0 0 1795547361.128303455 - - -\n"
        b"/a 3 100644 2 0 0 0 1795547361.116303454 - hi\\n -\n"
        b"/b 0 @120000 - - - - 0.0 /a - -\n"
        b"/ext 100 100644 2 0 0 0 1795547361.133017176 " + PATH + b" - " + DIGEST + b"\n"
        b"/s 0 40755 2 0 0 0 1795547361.133017176 - - -\n"
        b"/s/ext2 0 @120000 - - - - 0.0 /ext - -\n"
    )
    assert b"".join(write_dump(parse_dump(data))) == data


def test_single_lines_are_escaped() -> None:
    link = Symlink(0o120777, 1, 0, 0, -1, ((b"user.=", b"-"),), b"-")
    assert format_entry(b"/a b\\\xe4", link, 1) == (
        b"/a\\x20b\\\\\\xe4 1 120777 1 0 0 0 -1.999999999 \\x2d - - user.\\x3d=-\n"
    )
    assert format_link(b"/a b", b"/c\td") == b"/a\\x20b 0 @120000 - - - - 0.0 /c\\td - -\n"
