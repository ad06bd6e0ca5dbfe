"""What differs between trees, and why."""

from __future__ import annotations

import pytest

from composefs_async.digest import Algorithm, ObjectId
from composefs_async.erofs.explain import causes
from composefs_async.erofs.explain.search import Explanation, explain
from composefs_async.erofs.writer import Dialect, build_image
from composefs_async.fsverity import digest
from composefs_async.tree.diff import Change, ChangeKind, FieldChange, diff_trees
from composefs_async.tree.dumpfile import parse_dump
from composefs_async.tree.inodes import Directory

ROOT = "/ 0 40755 3 0 0 0 1.0 - - -"
A, B = "aa" * 32, "bb" * 32
HELLO = digest(b"hello", Algorithm.SHA256).hex()


def tree(*lines: str) -> Directory:
    return parse_dump("\n".join(lines).encode())


def changed(path: bytes, *fields: tuple[str, object, object], sizes: tuple[int | None, int | None]) -> Change:
    return Change(path, ChangeKind.CHANGED, tuple(FieldChange(*each) for each in fields), *sizes)  # type: ignore[arg-type]


def external(digits: str) -> str:
    return f"{digits[:2]}/{digits[2:]} - {digits}"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("5 100644 1 0 0 0 1.0 - hello -", "5 100644 1 0 0 0 1.0 - hello -", None),
        ("5 100644 1 0 0 0 1.0 - hello -", "5 100600 1 2 3 0 1.5 - hello -",
         [("mode", 0o644, 0o600), ("uid", 0, 2), ("gid", 0, 3), ("mtime_ns", 10**9, 10**9 + 5)]),
        ("5 100644 1 0 0 0 1.0 - hello -", "2 100644 1 0 0 0 1.0 - hi -",
         [("size", 5, 2), ("content", b"hello", b"hi")]),
        ("5 100644 1 0 0 0 1.0 - hello -", f"5 100644 1 0 0 0 1.0 {external(HELLO)}",
         [("stored", "inline", "external"), ("path", None, f"{HELLO[:2]}/{HELLO[2:]}".encode())]),
        (f"5 100644 1 0 0 0 1.0 {external(A)}", f"9 100644 1 0 0 0 1.0 {external(B)}",
         [("size", 5, 9), ("digest", bytes.fromhex(A), bytes.fromhex(B)),
          ("path", external(A)[:65].encode(), external(B)[:65].encode())]),
        ("5 100644 1 0 0 0 1.0 - - -", "5 100644 1 0 0 0 1.0 some/path - -",
         [("stored", "sparse", "unverified"), ("path", b"", b"some/path")]),
        ("1 120777 1 0 0 0 1.0 a - -", "2 120777 1 0 0 0 1.0 bb - -", [("target", b"a", b"bb")]),
        ("0 20644 1 0 0 5 1.0 - - -", "0 60644 1 0 0 6 1.0 - - -",
         [("type", "character device", "block device"), ("rdev", 5, 6)]),
        ("0 10644 1 0 0 0 1.0 - - - user.a=1 user.b=2", "0 10644 1 0 0 0 1.0 - - - user.b=3 user.c=",
         [("xattr user.a", b"1", None), ("xattr user.b", b"2", b"3"), ("xattr user.c", None, b"")]),
    ],
    ids=["equal", "metadata", "content", "inline or not", "digest", "sparse", "target", "device", "attributes"],
)  # fmt: skip
def test_fields_that_differ_are_named(
    before: str, after: str, expected: list[tuple[str, object, object]] | None
) -> None:
    changes = diff_trees(tree(ROOT, f"/f {before}"), tree(ROOT, f"/f {after}"))
    sizes = [int(text.split()[0]) if text.split()[1][0] == "1" and text.split()[1] != "10644" else None
             for text in (before, after)]  # fmt: skip
    assert changes == ([] if expected is None else [changed(b"/f", *expected, sizes=(sizes[0], sizes[1]))])


def test_paths_come_in_order_and_all_below_a_new_directory_are_named() -> None:
    before = tree(
        ROOT, "/a 0 40755 2 0 0 0 1.0 - - -", "/a/x 2 100644 1 0 0 0 1.0 - xx -", "/c 0 10644 1 0 0 0 1.0 - - -"
    )
    after = tree(
        ROOT, "/a 1 100644 1 0 0 0 1.0 - a -", "/b 0 40755 2 0 0 0 1.0 - - -", "/b/y 3 100644 1 0 0 0 1.0 - yyy -"
    )
    found = [
        (change.path, change.kind.value, change.size_before, change.size_after) for change in diff_trees(before, after)
    ]
    assert found == [
        (b"/a", "changed", None, 1),
        (b"/a/x", "removed", 2, None),
        (b"/b", "added", None, None),
        (b"/b/y", "added", None, 3),
        (b"/c", "removed", None, None),
    ]


def test_hard_links_are_compared_by_their_first_names() -> None:
    file = "/{} 1 100644 1 0 0 0 1.0 - x -"
    before = tree(ROOT, file.format("a"), file.format("b"))
    after = tree(ROOT, file.format("a"), "/b 0 @120000 - - - - 0.0 /a - -")
    assert diff_trees(before, after) == [
        changed(b"/a", ("link", None, b"/a"), sizes=(1, 1)),
        changed(b"/b", ("link", None, b"/a"), sizes=(1, 1)),
    ]


def test_deep_trees_are_compared_without_recursion() -> None:
    lines = ["/" + "d/" * level + "d 0 40755 2 0 0 0 1.0 - - -" for level in range(1500)]
    assert diff_trees(tree(ROOT, *lines), tree(ROOT, *lines[:-1]))[0].kind is ChangeKind.REMOVED


# -- causes ------------------------------------------------------------------------------------

FULL = [
    "/ 0 40700 5 9 9 0 3.7 - - - user.root=1",
    "/dir 0 40755 3 0 0 0 0.0 - - -",
    "/dir/below 0 40755 2 0 0 0 0.0 - - -",
    f"/dir/big 100 100644 1 0 0 0 4.5 - {'z' * 100} -",
    "/dir/link 0 @120000 - - - - 0.0 /dir/big - -",
    "/dir/own 0 40750 2 1 1 0 4.5 - - -",
    "/dir/small 5 100644 1 0 0 0 4.5 - hello - security.capability=c security.selinux=l user.u=1",
    "/gone 0 20644 1 0 0 0 2.0 - - -",
    "/run 0 40755 3 0 0 0 8.8 - - -",
    "/run/lock 0 40755 2 0 0 0 8.8 - - - user.lock=1",
    "/usr 0 40755 2 0 0 0 6.6 - - - security.selinux=usr",
]


def image_id(root: Directory, version: int = 1, dialect: Dialect = Dialect.RUST) -> ObjectId:
    return digest(build_image(root, version=version, dialect=dialect), Algorithm.SHA256)


def names(found: Explanation) -> tuple[str, ...] | None:
    return None if found.causes is None else tuple(cause.name for cause in found.causes)


def test_equal_images_need_no_cause() -> None:
    found = explain(tree(*FULL), image_id(tree(*FULL)))
    assert found == Explanation((), False, None, 1)
    assert str(found) == "the images are equal"


REWRITES = [cause for cause in causes.CAUSES if cause.rewrite]


@pytest.mark.parametrize("cause", REWRITES, ids=[cause.name for cause in REWRITES])
def test_every_cause_is_found_by_the_digest_alone(cause: causes.Cause) -> None:
    root = tree(*FULL)
    assert cause.rewrite
    if cause.name == "implicit-by-default":
        below = root.children[b"dir"]
        assert isinstance(below, Directory)
        below.mode = below.children[b"below"].mode = 0o40711
    before = image_id(root)
    rewritten = cause.rewrite(root, Algorithm.SHA256)
    assert rewritten is not None
    assert image_id(root) == before, "the tree itself was changed"
    found = explain(root, image_id(rewritten))
    assert names(found) == (cause.name,)
    assert found.first == diff_trees(root, rewritten)[0]


@pytest.mark.parametrize("cause", REWRITES, ids=[cause.name for cause in REWRITES])
def test_cause_that_changes_nothing_says_so(cause: causes.Cause) -> None:
    assert cause.rewrite
    assert cause.rewrite(tree("/ 0 40755 2 0 0 0 0.0 - - -"), Algorithm.SHA256) is None


@pytest.mark.parametrize("version", [0, 2])
def test_other_layout_is_found(version: int) -> None:
    found = explain(tree(*FULL), image_id(tree(*FULL), version))
    assert names(found) == (f"layout-{version}",)


def test_rules_of_the_other_program_are_found() -> None:
    root = tree(ROOT, "/f 1 100644 7 0 0 0 0.0 - x -")
    assert names(explain(root, image_id(root, dialect=Dialect.C))) == ("dialect-mkcomposefs",)


def test_pair_of_causes_is_found() -> None:
    root = tree(*FULL)
    rewrite = next(cause.rewrite for cause in causes.CAUSES if cause.name == "container-root")
    assert rewrite
    changed_root = rewrite(root, Algorithm.SHA256)
    assert changed_root
    found = explain(root, image_id(changed_root, 2))
    assert names(found) == ("layout-2", "container-root")
    assert "the root took the metadata of /usr" in str(found)


def test_cause_on_the_side_of_the_first_tree_is_found() -> None:
    original = tree(*FULL)
    rewrite = next(cause.rewrite for cause in causes.CAUSES if cause.name == "xattrs-allow-list")
    assert rewrite
    filtered = rewrite(original, Algorithm.SHA256)
    assert filtered
    found = explain(filtered, image_id(original), other=original)
    assert (names(found), found.applied_to_other) == (("xattrs-allow-list",), True)
    assert found.first
    assert found.first.path == b"/"
    assert str(found).startswith("in the first image, only security.capability was kept")


def test_unknown_cause_is_admitted_with_the_first_difference() -> None:
    root, other = tree(*FULL), tree(*FULL[:-1], "/usr 0 40711 2 0 0 0 6.6 - - - security.selinux=usr")
    found = explain(root, image_id(other), other=other)
    assert found.causes is None
    assert found.first == changed(b"/usr", ("mode", 0o755, 0o711), sizes=(None, None))
    assert str(found).endswith("; the first difference is at /usr, mode: 0755, 0711")


def test_what_a_tree_alone_cannot_tell_is_said() -> None:
    whole = tree("/ 0 40755 3 0 0 0 6.0 - - -", "/usr 0 40755 2 0 0 0 7.0 - - - security.capability=x")
    found = explain(whole, ObjectId(bytes(32)))
    assert [cause.name for cause in found.untold] == [
        "run-emptied",
        "xattrs-allow-list",
        "nanoseconds-dropped",
        "inline-threshold",
        "links-broken",
    ]
    assert str(found).endswith(
        "; whether the image has lost the content of /run, or other attributes than security.capability, or "
        "nanoseconds of times, or content of more than 64 bytes that was in the image, or hard links, only the other "
        "one can tell"
    )
    assert explain(whole, ObjectId(bytes(32)), other=tree(*FULL)).untold == ()


def test_attempts_are_bounded() -> None:
    found = explain(tree(*FULL), ObjectId(bytes(32)), attempts=5)
    assert (found.causes, found.attempts) == (None, 5)
    assert explain(tree(*FULL), ObjectId(bytes(32))).attempts <= 400
