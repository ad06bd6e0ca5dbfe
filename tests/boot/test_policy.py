"""Policies: files and lines, the label of a path, aliases, and where restorecon would disagree."""

from __future__ import annotations

import re
from typing import Any

import pytest

from composefs_async.boot import Policy
from composefs_async.boot.matching import re2_module
from composefs_async.boot.policy import FILE_LIMIT
from composefs_async.errors import SELinuxPolicyError

from .conftest import ENGINES


def policy(engine: Any = None, **files: str) -> Policy:
    names = {name: "file_contexts" if name == "contexts" else f"file_contexts.{name}" for name in files}
    return Policy.from_files({names[name]: text.encode() for name, text in files.items()}, engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_lines_have_two_or_three_fields(engine: str) -> None:
    found = policy(
        engine,
        contexts="\n \t \n# /x a\n  #/y b\n/.* all\r\n/d\t-d\u00a0 dir \n\u2003/l -l link\n/n -- <<none>>\n/c -c c\n"
        "/b -b b\n/p -p p\n/s -s s",
    )
    asked = {"/d": "d-", "/l": "l-", "/n": "-d", "/c": "cb", "/b": "bc", "/p": "ps", "/s": "sp", "/x": "-"}
    assert {path: [found.label(path.encode(), kind) for kind in kinds] for path, kinds in asked.items()} == {
        "/d": [b"dir", b"all"],
        "/l": [b"link", b"all"],
        "/n": [None, b"all"],
        "/c": [b"c", b"all"],
        "/b": [b"b", b"all"],
        "/p": [b"p", b"all"],
        "/s": [b"s", b"all"],
        "/x": [b"all"],
    }
    decided = found.specification(b"/d", "d")
    assert decided is not None
    assert (decided.file, decided.line, str(decided)) == ("file_contexts", 6, "file_contexts, line 6: /d")


def test_the_last_line_of_the_last_file_wins() -> None:
    found = policy(contexts="/a one\n/a two\n/b one", homedirs="/a home\n/c home", local="/a local\n/b local\n/c local")
    assert [found.label(path, "-") for path in (b"/a", b"/b", b"/c", b"/d")] == [b"home", b"local", b"home", None]


@pytest.mark.parametrize("engine", ENGINES)
def test_aliases_are_followed_on_the_way_down_once(engine: str) -> None:
    found = policy(
        engine,
        contexts="/b(/.*)? b\n/c(/.*)? c\n/h(/.*)? h\n/x/y y\nrel rel\n/ root",
        subs="/a /b\n/b /a\n/loop /loop/loop\n/q rel\n/s /",
        subs_dist="/b /c\n/a/sub /h\n/e/f /x\n",
    )
    asked = {
        b"/a": b"b", b"/a/f": b"b", b"/b": b"c", b"/b/f": b"c",
        b"/a/sub": b"b",  # looked up as /b/sub
        b"/e/f/y": b"y", b"/q": b"rel", b"/s": b"root", b"/s/b": b"c", b"/loop/x": None,
    }  # fmt: skip
    assert {path: found.label(path, "d") for path in asked} == asked


@pytest.mark.parametrize(
    ("files", "line", "words"),
    [
        ({}, None, "no such file"),
        ({"contexts": "/a x\n/b"}, 2, "context is missing"),
        ({"contexts": "\n/a -d"}, 2, "context is missing"),
        ({"contexts": "/a -x y"}, 1, "no type of files"),
        ({"contexts": "/a -dd y"}, 1, "no type of files"),
        ({"contexts": "/a - y"}, 1, "no type of files"),
        ({"contexts": "/a -d y z"}, 1, "after the context"),
        ({"contexts": "/a y z"}, 1, "after the context"),
        ({"contexts": "/a y\n/(b x"}, 2, "'/(b'"),
        ({"contexts": "/a y\n\n/(?<=a*)b x"}, 3, "look-behind"),
        ({"contexts": "/a y\n/\udcff x"}, 2, "not UTF-8"),
        ({"contexts": "/a\0 y"}, 1, "NUL"),
        ({"contexts": "", "local": "\n/a["}, 2, "context is missing"),
        ({"contexts": "", "subs": "/a"}, 1, "original path is missing"),
        ({"contexts": "", "subs_dist": "#\n/a /b /c"}, 2, "after the original path"),
    ],
)
def test_a_malformed_file_is_refused_with_its_name_and_line(
    files: dict[str, str], line: int | None, words: str
) -> None:
    names = {name: "file_contexts" if name == "contexts" else f"file_contexts.{name}" for name in files}
    with pytest.raises(SELinuxPolicyError, match=re.escape(words)) as caught:
        Policy.from_files({names[name]: text.encode(errors="surrogateescape") for name, text in files.items()})
    assert caught.value.line == line
    assert caught.value.name == (list(names.values()) or ["file_contexts"])[-1]


def test_sizes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SELinuxPolicyError, match="limit"):
        Policy.from_files({"file_contexts": b"#" * (FILE_LIMIT + 1)})
    monkeypatch.setattr("composefs_async.boot.policy.SPECIFICATION_LIMIT", 3)
    with pytest.raises(SELinuxPolicyError, match=r"file_contexts\.local, line 2: more than 3 specifications"):
        policy(contexts="/a x\n/b x", local="/c x\n/d x")


def test_types_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="no type of files"):
        policy(contexts="/a x").label(b"/a", "f")


DISAGREEMENTS = [
    ("homedirs before local", {"contexts": "/x x", "local": "/h[/]x l", "homedirs": "/h[/]x h"}, "/h/x", "h", "l"),
    ("a literal path first", {"contexts": "/opt/exact e\n/opt/.* o"}, "/opt/exact", "o", "e"),
    ("none for a literal path first", {"contexts": "/n <<none>>\n/.* o"}, "/n", "o", None),
    ("an alias below an alias", {"contexts": "/.* o\n/b(/.*)? b\n/home(/.*)? h", "subs": "/a/sub /home\n/a /b"},
     "/a/sub", "b", "h"),
    ("an alias in both files", {"contexts": "/.* o\n/b b\n/c c", "subs": "/a /b", "subs_dist": "/a /c\n/b /o"},
     "/a", "c", "o"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "path", "ours", "theirs"), [case[1:] for case in DISAGREEMENTS])
def test_where_restorecon_would_disagree(
    files: dict[str, str], path: str, ours: str | None, theirs: str | None
) -> None:
    found = policy(**files)
    assert found.label(path.encode(), "-") == (ours and ours.encode())
    assert found.as_libselinux().label(path.encode(), "-") == (theirs and theirs.encode())
    assert found.disagreement(path.encode(), "-") == (
        found.specification(path.encode(), "-"),
        found.as_libselinux().specification(path.encode(), "-"),
    )
    assert found.disagreement(b"/nowhere", "-") is None


@pytest.mark.skipif(re2_module() is None, reason="google-re2 is not installed")
def test_both_engines_label_by_the_policy_of_debian(debian_policy: dict[str, bytes]) -> None:
    fast, slow = (Policy.from_files(debian_policy, engine=engine) for engine in ("re2", "python"))  # type: ignore[arg-type]
    assert len(fast.specifications) == 5845
    paths = sorted({_example(each.regex) for each in fast.specifications})
    kinds = "-dl"
    found = [[policy.label(path, kind) for path in paths for kind in kinds] for policy in (fast, slow)]
    assert found[0] == found[1]
    assert len(set(found[0])) > 1000


def _example(regex: bytes) -> bytes:
    """A path somewhere near what *regex* matches."""
    return (
        re.sub(rb"\(/\.\*\)\?$", b"/some/file", regex)
        .replace(rb"\.", b".")
        .replace(b".*", b"x")
        .replace(b"[^/]+", b"y")
    )
