"""Repositories with garbage in them, made of small hand-written streams, and what is left of them; for tests of gc."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from composefs_async.digest import ObjectId
from composefs_async.erofs.writer import build_image
from composefs_async.repository import Repository
from composefs_async.splitstream import OCI_LAYER, SplitstreamWriter
from composefs_async.tree.dumpfile import parse_dump


def store(repo: Repository, *contents: str) -> list[ObjectId]:
    """Objects of a kilobyte each."""
    return [repo.ensure_object(content.encode().ljust(1000, b".")).id for content in contents]


def write(
    repo: Repository, contents: Sequence[str], named: Mapping[str, ObjectId] | None = None
) -> tuple[SplitstreamWriter, list[ObjectId]]:
    writer = SplitstreamWriter(repo.algorithm, OCI_LAYER)
    ids = store(repo, *contents)
    for object_id in ids:
        writer.write_reference(object_id)
        writer.add_external_size(1000)
    for name, target in (named or {}).items():
        writer.add_named_stream_ref(name, target)
    return writer, ids


def stream(
    repo: Repository,
    name: str,
    contents: Sequence[str] = (),
    *,
    named: Mapping[str, ObjectId] | None = None,
    reference: str | None = None,
) -> ObjectId:
    """A published stream of these contents."""
    return repo.write_stream(write(repo, contents, named)[0], name, reference)


def image(repo: Repository, contents: Iterable[str], reference: str | None = None) -> ObjectId:
    """A published EROFS image whose files are these contents."""
    return repo.write_image(image_bytes(repo, contents), reference)


def image_bytes(repo: Repository, contents: Iterable[str]) -> bytes:
    lines = ["/ 0 40755 2 0 0 0 0.0 - - -"]
    for number, object_id in enumerate(store(repo, *contents)):
        lines.append(f"/file{number} 1000 100644 1 0 0 0 0.0 {object_id.path} - {object_id.hex()}")
    return build_image(parse_dump("\n".join(lines).encode() + b"\n"), repo.algorithm, 1)


def objects(repo: Repository) -> set[str]:
    """The contents of what `store` has stored and is still there, by its first word; ids of everything else."""
    found = set()
    for path in Path(repo.path, "objects").glob("??/*"):
        content = path.read_bytes()
        is_ours = len(content) == 1000 and content.endswith(b"...")
        found.add(content.rstrip(b".").decode() if is_ours else path.parent.name + path.name)
    return found


def links(repo: Repository) -> set[str]:
    root = Path(repo.path)
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_symlink()}


def everything(repo: Repository) -> dict[str, bytes | str]:
    """All files and links by their path, except for what only upkeep knows."""
    root = Path(repo.path)
    found: dict[str, bytes | str] = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file() and not name.startswith(".composefs-async/"):
            found[name] = path.read_bytes()
    return found
