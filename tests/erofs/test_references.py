"""The objects that images refer to."""

from __future__ import annotations

from pathlib import Path

import pytest

from composefs_async.digest import Algorithm, ObjectId
from composefs_async.erofs.references import image_object_ids
from composefs_async.erofs.writer import Dialect, build_image
from composefs_async.errors import ErofsError
from composefs_async.tree.dumpfile import parse_dump
from composefs_async.tree.inodes import Directory, ExternalFile
from composefs_async.tree.walk import walk

VECTORS = Path(__file__).parents[1] / "vectors"
HOSTILE = VECTORS / "hostile"
A, B, C = (f"{n:02x}" * 32 for n in (0xAA, 0xBB, 0xCC))


def path_of(digest: str) -> str:
    return f"{digest[:2]}/{digest[2:]}"


def image_of(*lines: str, version: int = 1, dialect: Dialect = Dialect.C) -> bytes:
    root = parse_dump("\n".join(["/ 0 40755 2 0 0 0 0.0 - - -", *lines]).encode())
    return build_image(root, version=version, dialect=dialect)


def digests_of(root: Directory) -> set[bytes]:
    return {inode.digest for _, inode in walk(root) if isinstance(inode, ExternalFile) and inode.digest}


@pytest.mark.parametrize(
    ("image", "dump", "unverified"),
    [
        ("v0", "classic", {bytes.fromhex("ab" + "cd" * 31)}),
        ("v1", "classic", {bytes.fromhex("ab" + "cd" * 31)}),
        ("v2", "flat", set[bytes]()),
        ("v2-sha512", "flat-sha512", set[bytes]()),
    ],
)
def test_all_digests_of_the_tree_are_found(image: str, dump: str, unverified: set[bytes]) -> None:
    ids = image_object_ids((HOSTILE / f"{image}.img").read_bytes())
    assert set(ids) == digests_of(parse_dump((HOSTILE / f"{dump}.dump").read_bytes())) | unverified
    assert len(ids) == len(set(ids))
    assert all(type(found) is ObjectId for found in ids)


@pytest.mark.parametrize("path", sorted((VECTORS / "image").rglob("*.dump")), ids=lambda path: str(path.stem))
@pytest.mark.parametrize("version", [0, 1, 2])
def test_digests_of_golden_trees_are_found(path: Path, version: int) -> None:
    root = parse_dump(path.read_bytes())
    algorithm = Algorithm.SHA512 if any(len(digest) == 64 for digest in digests_of(root)) else Algorithm.SHA256
    try:
        image = build_image(root, algorithm, version)
    except ErofsError as error:
        pytest.skip(f"layout {version} cannot hold it: {error}")
    assert set(image_object_ids(image, algorithm)) == digests_of(root)


@pytest.mark.parametrize("version", [0, 1, 2])
def test_order_is_breadth_first_and_each_object_comes_once(version: int) -> None:
    image = image_of(
        "/d 0 40755 2 0 0 0 0.0 - - -",
        f"/d/a 5 100644 1 0 0 0 0.0 {path_of(A)} - {A}",
        f"/d/b 5 100644 1 0 0 0 0.0 {path_of(B)} - {B}",
        f"/x 5 100644 1 0 0 0 0.0 {path_of(C)} - {C}",
        f"/y 5 100644 1 0 0 0 0.0 {path_of(B)} - {B}",
        version=version,
    )
    assert [str(found) for found in image_object_ids(image)] == [C, B, A]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (f"5 100644 1 0 0 0 0.0 {path_of(A)} - {A}", [A]),
        (f"5 100644 1 0 0 0 0.0 - - {A}", [A]),
        (f"5 100644 1 0 0 0 0.0 {path_of(A)} - -", [A]),
        (f"5 100644 1 0 0 0 0.0 /{path_of(A)} - -", [A]),
        (f"5 100644 1 0 0 0 0.0 {path_of(B)} - {A}", [A, B]),
        (f"5 100644 1 0 0 0 0.0 some/where - {A}", [A]),
        ("5 100644 1 0 0 0 0.0 some/where - -", []),
        ("5 100644 1 0 0 0 0.0 - - -", []),
        ("5 100644 1 0 0 0 0.0 - hello -", []),
        (f"{64 + 2} 120777 1 0 0 0 0.0 {path_of(A)} - -", []),
    ],
    ids=["usual", "no path", "unverified", "slash", "other path", "strange path", "unverified strange path", "sparse",
         "inline", "symlink"],
)  # fmt: skip
def test_digest_and_redirect_are_references(fields: str, expected: list[str]) -> None:
    assert [str(found) for found in image_object_ids(image_of(f"/f {fields}"))] == expected


def test_labelled_and_linked_files_are_found() -> None:
    label = "security.selinux=system_u:object_r:usr_t:s0"
    lines = [f"/{n:02d} 5 100644 1 0 0 0 0.0 {n:02x}/{'00' * 31} - {n:02x}{'00' * 31} {label}" for n in range(40)]
    lines += [f"/{n:02d}-again 5 100644 1 0 0 0 0.0 {n:02x}/{'00' * 31} - {n:02x}{'00' * 31}" for n in range(3)]
    lines += ["/link 0 @120000 - - - - 0.0 /05 - -"]
    for version in (0, 1, 2):
        ids = image_object_ids(image_of(*lines, version=version, dialect=Dialect.RUST))
        assert [found[0] for found in ids] == list(range(40))


def test_redirect_to_an_object_of_another_algorithm_is_an_error() -> None:
    long = "dd" * 64
    image = image_of(f"/a 5 100644 1 0 0 0 0.0 {path_of(A)} - {A}", f"/b 5 100644 1 0 0 0 0.0 {path_of(long)} - -")
    with pytest.raises(ErofsError, match="by sha512, not by sha256"):
        image_object_ids(image)


@pytest.mark.parametrize("version", [0, 1])
def test_users_attribute_like_a_mark_does_not_make_an_image_invalid(version: int) -> None:
    image = image_of(
        f"/a 5 100644 1 0 0 0 0.0 {path_of(A)} - {A} trusted.overlay.whiteout= trusted.overlay.metacopy=zz",
        version=version,
    )
    assert [str(found) for found in image_object_ids(image)] == [A]
