"""Regular expressions of policies: what composefs-rs means by them, in both engines; and what is refused."""

from __future__ import annotations

import re

import pytest

from composefs_async.boot.matching import matcher_for
from composefs_async.boot.regex import BELOW, LITERAL, OTHER, SUBTREE, BracketError, parse_expression

from .conftest import ENGINES

# Expression, paths of regular files that it matches whole, and such that it does not.
CASES = [
    (rb"/usr/lib/libc\.so", [b"/usr/lib/libc.so"], [b"/usr/lib/libcXso", b"/usr/lib/libc.so.6", b"usr/lib/libc.so"]),
    (rb"/home(/.*)?", [b"/home", b"/home/", b"/home/a/b\nc"], [b"/homes", b"/", b"x/home"]),
    (rb"/a/.*", [b"/a/", b"/a/b/c", b"/a/\xff\n"], [b"/a", b"/b/a/"]),
    (rb"/a|/b", [b"/a", b"/b"], [b"/ab", b"/a|/b"]),
    (rb"/(a|b)+/x{2,3}", [b"/aab/xx", b"/b/xxx"], [b"/c/xx", b"/a/x", b"/a/xxxx"]),
    (rb"/x{0}y", [b"/y"], [b"/xy"]),
    (rb"/[^/]+/f", [b"/a\n/f", b"/\x80/f"], [b"/a/b/f", b"//f"]),
    (rb"/[[:alpha:]_]+[0-9]*", [b"/Ab_1", b"/z"], [b"/1", b"/"]),
    (rb"/[a-c[x-z]]", [b"/a", b"/y"], [b"/[", b"/]", b"/d"]),
    (rb"/[a-z&&[^b]]", [b"/a"], [b"/b", b"/&"]),
    (rb"/[a-d--b]", [b"/a", b"/d"], [b"/b", b"/-"]),
    (rb"/[]a]", [b"/]", b"/a"], [b"/b"]),
    (rb"/[a-]", [b"/a", b"/-"], [b"/b"]),
    (rb"/a**", [b"/", b"/aaa"], [b"/b"]),
    (rb"/a*+a", [b"/a", b"/aa"], [b"/"]),
    (rb"/a+?b??", [b"/aaab", b"/a"], [b"/b"]),
    (rb"/(?i:AbC)d", [b"/abCd", b"/ABCd"], [b"/abcD"]),
    (rb"/(?P<name>x)(?:y)", [b"/xy"], [b"/x"]),
    (rb"/\x61\t\-\/\d\w\S", [b"/a\t-/5_."], [b"/a\t-/x_."]),
    # What follows the path is the type of the file, so that an anchor at the end can never hold.
    (rb"^/a", [b"/a"], [b"/b"]),
    (rb"/a$", [], [b"/a"]),
    (rb"/a\b", [b"/a"], []),  # "-", the type, is no part of a word
    ("/é+".encode(), ["/éé".encode()], ["/é".encode()[:-1], b"/"]),
    # Not for Rust's engine, and there "." is no newline.
    (rb"/nn/(?!q).*", [b"/nn/x", b"/nn/"], [b"/nn/q", b"/nn/qx", b"/nn/x\ny"]),
    # The group that composefs-rs puts around an expression is the first.
    (rb"/(.)/\2", [b"/a/a"], [b"/a/b", b"/\n/\n"]),
    (rb"/(.)/\1|/x", [b"/x"], [b"/a/a"]),
    (rb"/(?<=/)[a[]", [b"/a", b"/["], [b"/b"]),
    (rb"/a{b}", [b"/a{b}"], [b"/a"]),
    (rb"/a{,x}\e", [b"/a{,x}\x1b"], [b"/a"]),
    (rb"/(?>a+)b", [b"/aab"], [b"/aa"]),
    (rb"/([[:alpha:]-x])\2", [b"/--", b"/xx"], [b"/11", b"/x-"]),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("regex", "good", "bad"), CASES, ids=[repr(case[0])[2:-1] for case in CASES])
def test_an_expression_matches_whole_paths(engine: str, regex: bytes, good: list[bytes], bad: list[bytes]) -> None:
    matcher = matcher_for([(parse_expression(regex), None)], engine=engine)
    found = {path: matcher.find(path, ord("-")) == 0 for path in (*good, *bad)}
    assert found == dict.fromkeys(good, True) | dict.fromkeys(bad, False)


@pytest.mark.parametrize(
    ("regex", "kind", "prefix", "required"),
    [
        (rb"/usr/bin", LITERAL, b"/usr/bin", b"/usr/bin"),
        (rb"/etc/ld\.so", LITERAL, b"/etc/ld.so", b"/etc/ld.so"),
        (rb"/home(/.*)?", SUBTREE, b"/home", b"/home"),
        (rb"/a\.b(/.*)?", SUBTREE, b"/a.b", b"/a.b"),
        (rb"/x/[^/]+/a_long_name/.*", OTHER, b"/x/", b"/a_long_name/"),
        (rb"/ab?", OTHER, b"/a", b"/a"),
        (rb"/abc|/abd", OTHER, b"", b""),
        (rb"/(?i)abc", OTHER, b"/", b""),
        (rb"/x/.*", BELOW, b"/x", b""),
        (rb"(/.*)?(/.*)?", OTHER, b"", b""),
        (rb"/nn(?!q)", OTHER, b"", b""),
    ],
)
def test_what_is_known_without_matching(regex: bytes, kind: str, prefix: bytes, required: bytes) -> None:
    found = parse_expression(regex)
    assert (found.kind, found.prefix, found.required) == (kind, prefix, required)


@pytest.mark.parametrize(
    ("regex", "words"),
    [
        (rb"/a(", "'('"),
        (rb"/a)", "')'"),
        (rb"*a", "repeat"),
        (rb"/a|*", "repeat"),
        (rb"/a{3,2}", "before it begins"),
        (rb"/[a", "'['"),
        (rb"/[z-a]", "before it begins"),
        (rb"/\Qa", r"\Q"),
        (rb"/(a)\12", "nine groups"),
        (rb"/\p{L}", r"\p"),
        (rb"/(?x: a)", "flags"),
        (rb"/\x{100}", "no byte"),
        (b"(" * 500 + b")" * 500, "deeply"),
        (b"/" * 20_000, "20000 bytes"),
    ],
    ids=lambda value: repr(value[:12]),
)
def test_what_cannot_be_read_is_refused(regex: bytes, words: str) -> None:
    with pytest.raises(BracketError, match=re.escape(words)):
        parse_expression(regex)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_last_rule_wins_and_types_count(engine: str) -> None:
    lines = [
        (rb"/.*", None), (rb"/a", "-"), (rb"/a(/.*)?", "d"), (rb"/a/[bc]", None), (rb"/a/b", "l"), (rb"/z.*", "c"),
        (rb"/a/(?!c).", "p"),
    ]  # fmt: skip
    matcher = matcher_for([(parse_expression(text), kind and ord(kind)) for text, kind in lines], engine=engine)
    cases = {
        (b"/a", "-"): 1, (b"/a", "d"): 2, (b"/a", "l"): 0, (b"/a/b", "-"): 3, (b"/a/b", "l"): 4, (b"/a/b", "d"): 3,
        (b"/a/d", "d"): 2, (b"/zz", "c"): 5, (b"/zz", "b"): 0, (b"/a/c", "p"): 3, (b"/a/b", "p"): 6, (b"", "-"): -1,
        (b"x", "-"): -1, (b"a/b", "l"): -1,
    }  # fmt: skip
    assert {(path, kind): matcher.find(path, ord(kind)) for path, kind in cases} == cases
