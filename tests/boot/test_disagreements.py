"""Files to which restorecon would give another label: found as by comparing every file, and told of."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composefs_async.boot import Disagreement, Policy, find_disagreements, transform_for_boot
from composefs_async.boot.labels import kind_of_inode
from composefs_async.tree.inodes import Directory
from composefs_async.tree.walk import walk

from .conftest import Content, make_tree, no_reading, with_policy

NAMES = st.sampled_from(["a", "b", "c", "a.b"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(lambda names: "/" + "/".join(names))
REGEXES = PATHS | PATHS.map(lambda path: path.replace(".", r"\.")) | PATHS.map(lambda path: f"{path}(/.*)?")
LINES = st.lists(st.tuples(REGEXES, st.sampled_from(["", "", "-- ", "-d "])), max_size=6)
ALIASES = st.dictionaries(PATHS, PATHS, max_size=3)


def policy(**files: str) -> Policy:
    names = {"contexts": "file_contexts", **{each: f"file_contexts.{each}" for each in files if each != "contexts"}}
    return Policy.from_files({names[each]: text.encode() for each, text in files.items()})


def compared(root: Directory, by: Policy) -> set[bytes]:
    """What a comparison of all files finds."""
    return {path for path, inode in walk(root) if by.disagreement(path, kind_of_inode(inode))}


def lines(found: list[tuple[str, str]], prefix: str) -> str:
    return "".join(f"{regex} {kind}{prefix}{number}\n" for number, (regex, kind) in enumerate(found))


@settings(max_examples=400, deadline=None)
@given(contexts=LINES, local=LINES, homedirs=LINES, subs=ALIASES, subs_dist=ALIASES,
       paths=st.lists(PATHS, min_size=1, max_size=8))  # fmt: skip
def test_what_comparing_every_file_finds_is_found(
    contexts: list[tuple[str, str]],
    local: list[tuple[str, str]],
    homedirs: list[tuple[str, str]],
    subs: dict[str, str],
    subs_dist: dict[str, str],
    paths: list[str],
) -> None:
    entries: dict[str, Content] = {}
    for path in sorted({each[1:] for each in paths}):
        if not any(path.startswith(f"{other}/") for other in entries):
            entries[path] = b""
    root = make_tree(entries)
    by = policy(
        contexts="/.* o\n" + lines(contexts, "c"),
        local=lines(local, "l"),
        homedirs=lines(homedirs, "h"),
        subs="".join(f"{alias} {original}\n" for alias, original in subs.items()),
        subs_dist="".join(f"{alias} {original}\n" for alias, original in subs_dist.items()),
    )
    found = list(find_disagreements(root, by))
    assert ({each.path for each in found}, len(found)) == (compared(root, by), len({each.path for each in found}))
    for each in found:
        kind = kind_of_inode(dict(walk(root))[each.path])
        differing = by.disagreement(each.path, kind)
        assert differing is not None
        assert (each.label, each.restorecon_label) == tuple(line and line.context for line in differing)


def test_an_expression_that_hides_a_character_class_in_an_escape_is_compared_everywhere() -> None:
    root = make_tree({"a/7": b"", "a/x": b""})
    by = policy(contexts="/a/\\d digit\n/a/.* o\n")
    assert [(each.path, each.label, each.restorecon_label) for each in find_disagreements(root, by)] == [
        (b"/a/7", b"o", b"digit")
    ]


def test_a_policy_as_shipped_costs_no_second_reading(
    debian_policy: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    by = Policy.from_files(debian_policy)
    root = make_tree({"usr/bin/ls": b"", "lib/systemd/systemd": b"", "etc/shadow": b"", "run/lock/x": b""})
    assert compared(root, by) == set()

    def refuse(self: Policy) -> Policy:
        raise AssertionError

    monkeypatch.setattr(Policy, "as_libselinux", refuse)
    assert list(find_disagreements(root, by)) == []


def test_whoever_makes_a_bootable_tree_is_told(caplog: pytest.LogCaptureFixture) -> None:
    entries: dict[str, Content] = {"usr/bin/ls": b"", "boot/x": b"", "sysroot/x": b"", "opt/exact": b""}
    for text, expected in (
        ("/.* o\n/opt/.* opt\n", []),
        (
            "/.* o\n/opt/exact e\n/opt/.* opt\n",
            [
                "restorecon would change the labels of 1 files in this image, such as that of /opt/exact from opt "
                "(file_contexts, line 3: /opt/.*) to e (file_contexts, line 2: /opt/exact); "
                "'boot labels --restorecon' lists them"
            ],
        ),
    ):
        root = make_tree(with_policy(entries, contexts=text))
        with caplog.at_level(logging.WARNING, "composefs_async.boot"):
            found = transform_for_boot(root, no_reading)
        assert found is not None
        assert [each.getMessage() for each in caplog.records] == expected
        line = found.specifications[-2]
        assert list(find_disagreements(root, found)) == (
            [Disagreement(b"/opt/exact", found.specifications[-1], line)] if expected else []
        )
        caplog.clear()
