"""Commands on EROFS images, of the repository or from files: to list, to look into, to compare."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from ..digest import Algorithm, ObjectId
from ..errors import NotFoundError
from ..tree import Directory, ExternalFile, InlineFile, Inode, Special, Symlink
from .context import ObjectIdType, Settings, as_json, print_json
from .output import print_bytes, printable, table
from .progress import size_text
from .sources import boot_source, take, take_both

if TYPE_CHECKING:
    from ..boot.explain import BootExplanation
    from ..erofs.explain.search import Explanation
    from ..tree.diff import Change, Value

__all__ = [
    "boot_explanation_json",
    "diff",
    "dump_files",
    "explain",
    "image_objects",
    "images",
    "import_image",
    "ls",
    "tree",
]

_READ_SIZE: Final = 1 << 20
_SHORT: Final = 12  # digits of an id
_SOURCES: Final = """

    Each is the name of an image in the repository, tag:NAME for the tree of an OCI image, or a path with a slash in
    it: of an image, a dump file or a directory.
"""


class _FileNotFoundError(NotFoundError):
    kind = "file"


# -- of the repository -------------------------------------------------------------------------


@click.command
@as_json
@click.option("--no-trunc", is_flag=True, help="Print the whole id.")
@click.pass_obj
def images(settings: Settings, json_output: bool, no_trunc: bool) -> None:
    """List the EROFS images that have a name."""
    with settings.open() as repo:
        found = repo.named_images()
    if json_output:
        print_json({"images": [{"name": name, "digest": digest} for name, digest in found]})
        return
    if not found:
        click.echo("No images found")
        return
    click.echo(
        table([("NAME", "DIGEST"), *((name, digest if no_trunc else digest[:_SHORT]) for name, digest in found)])
    )


@click.command
@click.argument("name")
@click.pass_obj
def import_image(settings: Settings, name: str) -> None:
    """Store the image on standard input and call it NAME; it is checked first.  Print its id."""
    if sys.stdin is None or sys.stdin.isatty():
        raise click.UsageError("there is no image on standard input")
    with settings.open() as repo:
        pieces = iter(lambda: sys.stdin.buffer.read(_READ_SIZE), b"")
        click.echo(repo.import_image(name, pieces).text)


@click.command
@click.argument("name")
@click.pass_obj
def image_objects(settings: Settings, name: str) -> None:
    """Print the ids of the objects that the image NAME refers to."""
    with settings.open() as repo:
        found = repo.objects_for_image(name)
    print_bytes(f"{object_id.text}\n".encode() for object_id in found)


@click.command
@click.argument("image")
@click.argument("paths", nargs=-1)
@click.option("--backing-path-only", is_flag=True, help="Print where the content of files is: inline, or XX/REST.")
@click.pass_obj
def dump_files(settings: Settings, image: str, paths: tuple[str, ...], backing_path_only: bool) -> None:
    """Print the lines of a dump file for each of PATHS in IMAGE, and for everything below those."""
    from ..tree.walk import count_links

    root = take(settings, image).tree
    if backing_path_only:
        print_bytes(_backing(root, path) for path in paths)
        return
    counts = count_links(root)
    for path in paths:
        print_bytes(_dump_lines(path, _find(root, path), counts))


def _find(root: Directory, path: str) -> Inode:
    from ..tree.walk import find

    if not path:
        raise click.UsageError("a path is empty")
    found = find(root, b"/".join(name for name in os.fsencode(path).split(b"/") if name != b"."))
    if found is None:
        raise _FileNotFoundError(path)
    return found


def _backing(root: Directory, path: str) -> bytes:
    found = _find(root, path)
    if isinstance(found, Directory):
        raise click.UsageError(f"{path} is a directory")
    place = found.path if isinstance(found, ExternalFile) else b"inline"
    return b"%b %b\n" % (os.fsencode(path), place)


def _dump_lines(path: str, found: Inode, counts: dict[Inode, int]) -> Iterator[bytes]:
    from ..tree.dumpwriter import format_entry, format_link
    from ..tree.walk import walk

    top = os.fsencode(path)
    entries = walk(found) if isinstance(found, Directory) else iter([(b"/", found)])
    seen: dict[Inode, bytes] = {}
    for below, inode in entries:
        name = top if below == b"/" else top.rstrip(b"/") + below
        first = seen.setdefault(inode, name)
        yield format_entry(name, inode, counts[inode]) if first is name else format_link(name, first)


# -- for people --------------------------------------------------------------------------------


@click.command(help="List the directory PATH, by default the root, of IMAGE." + _SOURCES)
@click.argument("image")
@click.argument("path", default="/")
@click.option("-R", "--recursive", is_flag=True, help="And everything below it.")
@click.pass_obj
def ls(settings: Settings, image: str, path: str, recursive: bool) -> None:
    """Print the entries of a directory of an image."""
    from ..tree.walk import walk

    found = _find(take(settings, image).tree, path)
    if not isinstance(found, Directory):
        click.echo(_row(os.fsencode(path), found))
    elif recursive:
        for name, inode in walk(found):
            click.echo(_row(name[1:] or b".", inode))
    else:
        for name, inode in sorted(found.children.items()):
            click.echo(_row(name, inode))


@click.command(help="Draw the directory PATH, by default the root, of IMAGE as a tree." + _SOURCES)
@click.argument("image")
@click.argument("path", default="/")
@click.option("-L", "--level", type=click.IntRange(min=1), help="Descend so many levels only.")
@click.pass_obj
def tree(settings: Settings, image: str, path: str, level: int | None) -> None:
    """Print a directory of an image as a tree."""
    root = _find(take(settings, image).tree, path)
    click.echo(path)
    files = directories = 0
    pending = _branches(root, "", 1)
    while pending:
        lead, name, inode, indent, depth = pending.pop()
        click.echo(f"{lead}{_text(name)}{_leaf(inode)}")
        if isinstance(inode, Directory):
            directories += 1
            if level is None or depth < level:
                pending += _branches(inode, indent, depth + 1)
        else:
            files += 1
    click.echo(f"\n{directories} directories, {files} files")


def _branches(inode: Inode, indent: str, depth: int) -> list[tuple[str, bytes, Inode, str, int]]:
    """The children of *inode*, the last one first: lines begin with the first member, what is below with the fourth."""
    children = sorted(inode.children.items(), reverse=True) if isinstance(inode, Directory) else []
    return [
        (f"{indent}{'├── ' if at else '└── '}", name, child, f"{indent}{'│   ' if at else '    '}", depth)
        for at, (name, child) in enumerate(children)
    ]


def _leaf(inode: Inode) -> str:
    """What is said of an inode behind its name."""
    if isinstance(inode, Symlink):
        return f" -> {_text(inode.target)}"
    if isinstance(inode, ExternalFile | InlineFile):
        return f" ({size_text(inode.size if isinstance(inode, ExternalFile) else len(inode.content))})"
    return "/" if isinstance(inode, Directory) else ""


def _row(name: bytes, inode: Inode) -> str:
    """As ls(1) has it, with times in UTC."""
    size = ""
    if isinstance(inode, ExternalFile):
        size = str(inode.size)
    elif isinstance(inode, InlineFile):
        size = str(len(inode.content))
    elif isinstance(inode, Special) and not stat.S_ISFIFO(inode.mode) and not stat.S_ISSOCK(inode.mode):
        size = f"{os.major(inode.rdev)},{os.minor(inode.rdev)}"
    target = f" -> {_text(inode.target)}" if isinstance(inode, Symlink) else ""
    return (
        f"{stat.filemode(inode.mode)} {inode.nlink:>3} {inode.uid:>5} {inode.gid:>5} {size:>10} "
        f"{_time(inode.mtime_ns)} {_text(name)}{target}"
    )


def _time(nanoseconds: int) -> str:
    try:
        return datetime.fromtimestamp(nanoseconds // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # beyond the year 9999, or before the year 1
        return f"@{nanoseconds // 1_000_000_000}"


def _text(raw: bytes) -> str:
    return printable(raw.decode("utf-8", "backslashreplace"))


# -- comparison --------------------------------------------------------------------------------


def _bootable_option(function: Any) -> Any:
    return click.option(
        "--bootable", is_flag=True, help="Of directories and tag:NAME take the tree as a machine boots it."
    )(function)


@click.command(help="Print what is different in the trees BEFORE and AFTER.  Exit code 1 if anything is." + _SOURCES)
@click.argument("before")
@click.argument("after")
@_bootable_option
@as_json
@click.pass_obj
def diff(settings: Settings, before: str, after: str, bootable: bool, json_output: bool) -> int:
    """Print what differs between two trees; 1 if anything does."""
    from ..tree.diff import diff_trees

    old, new = take_both(settings, before, after, bootable=bootable)
    changes = diff_trees(old.tree, new.tree)
    if json_output:
        print_json({"changes": [_change_json(change) for change in changes]})
    else:
        for change in changes:
            click.echo(_change_text(change))
    return 1 if changes else 0


def _change_text(change: Change) -> str:
    sign = {"added": "+", "removed": "-", "changed": "~"}[change.kind.value]
    fields = [f"{field.name} {field.before_text} -> {field.after_text}" for field in change.fields]
    return f"{sign} {_text(change.path)}" + (f": {', '.join(printable(field) for field in fields)}" if fields else "")


def _change_json(change: Change) -> dict[str, Any]:
    return {
        "path": os.fsdecode(change.path),
        "kind": change.kind.value,
        "fields": [
            {"name": field.name, "before": _json_value(field.name, field.before)}
            | {"after": _json_value(field.name, field.after)}
            for field in change.fields
        ],
        "size_before": change.size_before,
        "size_after": change.size_after,
    }


def _json_value(name: str, value: Value) -> object:
    if isinstance(value, bytes):
        return value.hex() if name == "digest" else os.fsdecode(value)
    return value


@click.command(
    help="Say why the image of the tree IMAGE is not that of OTHER, or has not the digest it should have.  "
    "Exit code 1 if no reason is found." + _SOURCES
)
@click.argument("image")
@click.argument("other", required=False)
@click.option("--expected-digest", type=ObjectIdType(), help="What the id of the image should be.")
@_bootable_option
@as_json
@click.pass_obj
def explain(
    settings: Settings,
    image: str,
    other: str | None,
    *,
    expected_digest: ObjectId | None,
    bootable: bool,
    json_output: bool,
) -> int:
    """Print why an image has another id than expected."""
    if (other is None) == (expected_digest is None):
        raise click.UsageError("either OTHER or --expected-digest is needed")
    if bootable:
        return _explain_boot(settings, image, other, expected_digest, json_output)
    found = _explained(settings, image, other, expected_digest)
    if json_output:
        print_json(_explanation_json(found))
    else:
        click.echo(printable(str(found)))
    return 1 if found.causes is None else 0


def _explain_boot(
    settings: Settings, image: str, other: str | None, expected: ObjectId | None, json_output: bool
) -> int:
    from .. import fsverity
    from ..boot.explain import explain_boot
    from ..boot.variants import Variant
    from ..erofs.writer import build_image

    theirs = None if other is None else take(settings, other, bootable=True)
    wanted = expected.algorithm if expected else theirs.algorithm if theirs else None
    make, read, algorithm, version = boot_source(settings, image, wanted)
    _check_algorithms(algorithm, wanted)
    if theirs is not None:
        content = theirs.image
        if content is None:
            content = build_image(theirs.tree, algorithm, theirs.version)
        expected = fsverity.digest(content, algorithm)
    assert expected is not None
    found = explain_boot(make, read, expected, usual=Variant(version=version), other=theirs.tree if theirs else None)
    if json_output:
        print_json(boot_explanation_json(found))
    else:
        click.echo(printable(str(found)))
    return 0 if found.variant else 1


def boot_explanation_json(found: BootExplanation) -> dict[str, Any]:
    """The members of an explanation of a bootable image."""
    line = found.specification
    return {
        "variant": str(found.variant) if found.variant else None,
        "differences": list(found.differences),
        "first": _change_json(found.first) if found.first else None,
        "specification": {"file": line.file, "line": line.line, "regex": os.fsdecode(line.regex)} if line else None,
        "attempts": found.tried,
    }


def _explained(settings: Settings, image: str, other: str | None, expected: ObjectId | None) -> Explanation:
    from .. import fsverity
    from ..erofs.explain import search as explaining
    from ..erofs.writer import build_image

    if expected is not None:
        mine = take(settings, image, expected.algorithm)
        _check_algorithms(mine.algorithm, expected.algorithm)
        return explaining.explain(mine.tree, expected, version=mine.version, read_as_composefs_rs=mine.as_composefs_rs)
    mine, theirs = take_both(settings, image, other or "")
    _check_algorithms(mine.algorithm, theirs.algorithm)
    algorithm = mine.algorithm or theirs.algorithm or Algorithm.SHA512
    content = theirs.image
    if content is None:
        content = build_image(theirs.tree, algorithm, theirs.version)
    wanted = fsverity.digest(content, algorithm)
    return explaining.explain(mine.tree, wanted, version=mine.version, other=theirs.tree, other_version=theirs.version)


def _check_algorithms(mine: Algorithm | None, other: Algorithm | None) -> None:
    if mine and other and mine is not other:
        raise click.UsageError(f"the algorithms differ, {mine.value} and {other.value}, so no cause makes them equal")


def _explanation_json(found: Explanation) -> dict[str, Any]:
    causes = None if found.causes is None else [{"name": each.name, "summary": each.summary} for each in found.causes]
    return {
        "causes": causes,
        "applied_to_other": found.applied_to_other,
        "first": _change_json(found.first) if found.first else None,
        "attempts": found.attempts,
        "untold": [{"name": each.name, "lost": each.lost} for each in found.untold],
    }
