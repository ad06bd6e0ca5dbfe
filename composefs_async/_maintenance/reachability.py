"""What names keep: which objects are reached, from which streams and images.

Owns the roots, the reading of one node, and the walk.  Does not own deleting (`collect`), nor where answers are kept
(`reach_cache`).  Whatever is decided here follows the ids of objects and their content, never names: a layer without
a name of its own lives as long as its config does.
"""

from __future__ import annotations

import enum
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from .._repo import objects
from .._repo.state import RepoState
from .._repo.walk import MAX_DEPTH, Category, meant_name, walk_links
from .._sys import errnos, files
from .._sys.beneath import IN_THE_WAY
from ..digest import Algorithm, ObjectId
from ..erofs.format import EROFS_MAGIC, SUPERBLOCK_OFFSET
from ..errors import (
    AlgorithmMismatchError,
    ErofsError,
    FormatError,
    IntegrityError,
    ObjectNotFoundError,
    ReachUnknownError,
)
from ..findings import Finding
from ..splitstream import BytesSource, SplitstreamReader
from ..splitstream.format import MAGIC

__all__ = [
    "CATEGORIES",
    "Cache",
    "Kind",
    "Node",
    "Reached",
    "Reference",
    "Roots",
    "read_node",
    "roots",
    "visit",
    "walk",
]

CATEGORIES: tuple[Category, ...] = ("streams", "images")

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
"""What streams from before 2026-01 begin with."""
_JANUARY_MAGIC = slice(18, 18 + len(MAGIC))


class Kind(enum.Enum):
    """What an object is, told by its content."""

    STREAM = "stream"
    IMAGE = "image"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Node:
    """What one object refers to."""

    kind: Kind
    objects: bytes
    """The ids of plain objects, one after the other: of a stream's contents, or of an image's files."""
    named: tuple[tuple[str, ObjectId], ...] = ()
    """A stream's named references, which lead to streams or images."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A link below ``refs/``."""

    category: Category
    path: str
    """Relative to the repository."""
    name: str
    """At the first level, that it means; not always there."""
    object_id: ObjectId | None
    """That this name leads to."""


@dataclass(frozen=True, slots=True)
class Roots:
    """The names of a repository, and which of them keep what they reach."""

    links: dict[Category, dict[str, ObjectId]]
    """All first-level names that lead to objects, whether these are there or not."""
    references: tuple[Reference, ...]
    """Sorted by their path."""
    additional: tuple[tuple[Category, str], ...]
    """First-level names that are roots because the caller said so."""
    mounted: tuple[ObjectId, ...]
    """Images that are roots because they are mounted."""
    lost: tuple[tuple[Category, str], ...]
    """First-level names of which nobody can say what they led to, that lead nowhere, and that no reference means."""
    notes: tuple[Finding, ...]
    """Names that lead nowhere, and what is no link."""
    hidden: tuple[tuple[str, str], ...]
    """Where names may be that cannot be seen, by its path, and why."""
    entries: dict[str, str | None] = field(repr=False)
    """What was found: paths and the targets of links."""

    @property
    def names(self) -> set[tuple[Category, str]]:
        """First-level names that are roots and are there."""
        referred = {(each.category, each.name) for each in self.references if each.object_id}
        links = self.links["images"]
        mounted: set[tuple[Category, str]] = {
            ("images", image.hex()) for image in self.mounted if links.get(image.hex()) == image
        }
        return referred | mounted | set(self.additional)

    def require_all(self) -> None:
        """Refuse to go on if there may be references that were not seen.

        Raises:
            ReachUnknownError: something stands in the way of a name.
        """
        for path, reason in self.hidden:
            raise ReachUnknownError(path, reason, "put in its place what belongs there")

    @property
    def ids(self) -> dict[ObjectId, str]:
        """What all roots lead to, each with the path of a name that does."""
        found = {image: f"images/{image.hex()}" for image in self.mounted}
        found.update({self.links[category][name]: f"{category}/{name}" for category, name in self.additional})
        found.update((each.object_id, each.path) for each in self.references if each.object_id)
        return found


@dataclass(slots=True)
class Reached:
    """What a walk found."""

    seen: set[ObjectId] = field(default_factory=set[ObjectId])
    """Everything that was followed, whether it is there or not."""
    nodes: dict[ObjectId, Node] = field(default_factory=dict[ObjectId, Node])
    """Everything that was followed and is there, roots first; `visit` leaves it empty."""
    missing: set[ObjectId] = field(default_factory=set[ObjectId])
    """Streams and images that were followed and are not there."""

    @property
    def notes(self) -> list[Finding]:
        """What is missing."""
        return [
            Finding("missing-object-ref", f"objects/{object_id.path}", object_id=object_id)
            for object_id in sorted(self.missing)
        ]


class Cache(Protocol):
    """Remembers nodes, which never change: an id has one content."""

    def get(self, object_id: ObjectId, /) -> Node | None: ...
    def put(self, object_id: ObjectId, node: Node, /) -> None: ...


# -- one object --------------------------------------------------------------------------------


def read_node(state: RepoState, object_id: ObjectId) -> Node:
    """Read an object whole, check its digest, and take from it what it refers to.  Safe for untrusted input.

    What is neither a stream nor an image refers to nothing.  A corrupt table must never decide what is deleted, so
    nothing is believed that the digest does not cover.  Of an image that is intact and malformed, everything counts
    that looks like a reference.

    Raises:
        ObjectNotFoundError, IntegrityError, SplitstreamError, AlgorithmMismatchError
    """
    content = objects.read_object(state, object_id)
    kind = _kind_of(content)
    if kind is Kind.STREAM:
        reader = SplitstreamReader(BytesSource(content), state.algorithm, name=object_id.hex())
        return Node(kind, bytes(reader.object_refs), tuple(reader.named_refs.items()))
    if kind is Kind.IMAGE:
        return Node(kind, b"".join(_image_objects(content, state.algorithm)))
    return Node(kind, b"")


def _image_objects(content: bytes, algorithm: Algorithm) -> list[ObjectId]:
    from ..erofs.references import image_object_ids, possible_object_ids

    try:
        return image_object_ids(content, algorithm)
    except ErofsError:
        return possible_object_ids(content, algorithm)


def _kind_of(content: bytes) -> Kind:
    if content.startswith((MAGIC, _ZSTD_MAGIC)) or content[_JANUARY_MAGIC] == MAGIC:
        return Kind.STREAM
    if content[SUPERBLOCK_OFFSET : SUPERBLOCK_OFFSET + 4] == struct.pack("<I", EROFS_MAGIC):
        return Kind.IMAGE
    return Kind.OTHER


# -- names -------------------------------------------------------------------------------------


def roots(
    state: RepoState,
    additional: Iterable[str] = (),
    known: Roots | None = None,
    mounted: tuple[ObjectId, ...] = (),
) -> Roots:
    """The names there are, and what keeps something: references, *additional* first-level names, *mounted* images.

    Names that lead nowhere, and what is no link, become notes.  A directory that cannot be read is an error.  Whoever
    deletes what nothing leads to calls `Roots.require_all` first.

    Args:
        additional: matched exactly with the names of both categories; others are ignored, as cfsctl does.
        known: returned itself if nothing has changed since.
    """
    with files.naming(state.path):
        entries = _read_links(state)
    if known is not None and (entries, mounted) == (known.entries, known.mounted):
        return known
    notes: list[Finding] = []
    links: dict[Category, dict[str, ObjectId]] = {category: {} for category in CATEGORIES}
    references: list[Reference] = []
    lost: list[tuple[Category, str]] = []
    for path, target in sorted(entries.items(), key=_first_level_first):
        top, _, name = path.partition("/")
        category: Category = "streams" if top == "streams" else "images"
        if target is None:
            notes.append(Finding("entry-not-symlink" if name else "unexpected-file-type", path, detail="no directory"))
        elif name.startswith("refs/"):
            references.append(_reference(category, path, target, links, notes))
        elif (object_id := _object_of(state, path, target, notes)) is not None:
            links[category][name] = object_id
        elif _leads_nowhere(state, path):
            lost.append((category, name))
    meant = {(each.category, each.name) for each in references}
    wanted = set(additional)
    extra = tuple((category, name) for category in CATEGORIES for name in sorted(wanted & links[category].keys()))
    unmeant = tuple(each for each in lost if each not in meant)
    hidden = tuple(_hidden(state, entries, references, wanted))
    return Roots(links, tuple(references), extra, mounted, unmeant, tuple(notes), hidden, entries)


def _hidden(
    state: RepoState, entries: Mapping[str, str | None], references: Iterable[Reference], wanted: Iterable[str]
) -> Iterator[tuple[str, str]]:
    """Where something stands in the way of names, and why that is so."""
    for path, target in sorted(entries.items()):
        is_refs = path.count("/") == 1 and path.endswith("/refs")
        if target is None and (path in CATEGORIES or is_refs or "/refs/" in path):
            deep = path.count("/") > 1 + MAX_DEPTH
            yield path, f"it is more than {MAX_DEPTH} directories deep" if deep else "it is no directory"
        elif target is not None and (is_refs or path in CATEGORIES):
            yield path, "it is a symbolic link, where a directory should be"
    for category in CATEGORIES:
        for name in {*wanted, *(each.name for each in references if each.category == category)}:
            if entries.get(path := f"{category}/{name}", "") is None:
                yield path, "it is no symbolic link"
    for each in references:
        if _may_hide_names(state, each, entries[each.path] or ""):
            yield each.path, "it is a symbolic link that leads, or led, to something else than a name"


def _may_hide_names(state: RepoState, reference: Reference, target: str) -> bool:
    """Whether a link below ``refs/`` is one to a directory, with references of its own, or to one that is away."""
    climb, name = os.path.split(target)
    if climb == "/".join([".."] * (reference.path.count("/") - 1)):
        return False
    try:
        with files.naming(state.path):
            return stat.S_ISDIR(state.follow(reference.path).st_mode)
    except OSError as error:
        if errnos.is_unread(error):
            raise
        return reference.object_id is None and not (name and set(climb.split("/")) <= {".."})


def _first_level_first(entry: tuple[str, str | None]) -> tuple[bool, str]:
    return entry[0].count("/") > 1, entry[0]


def _object_of(state: RepoState, path: str, target: str, notes: list[Finding]) -> ObjectId | None:
    try:
        return ObjectId.from_path(target).require(state.algorithm)
    except (FormatError, AlgorithmMismatchError):
        notes.append(Finding("link-target-invalid", path, detail=target, expected="../objects/XX/REST"))
        return None


def _leads_nowhere(state: RepoState, path: str) -> bool:
    try:
        with files.naming(state.path):
            state.follow(path)
    except OSError as error:
        if errnos.is_unread(error):
            raise
        return True
    return False


def _reference(
    category: Category, path: str, target: str, links: dict[Category, dict[str, ObjectId]], notes: list[Finding]
) -> Reference:
    name = meant_name(category, target, links[category].__contains__)
    object_id = links[category].get(name)
    if object_id is None:
        notes.append(Finding("broken-symlink", path))
    return Reference(category, path, name, object_id)


def _read_links(state: RepoState) -> dict[str, str | None]:
    """Paths and targets of all links of both categories; None for what is neither a link nor a directory of them."""
    entries: dict[str, str | None] = {}
    for category in CATEGORIES:
        for entry in walk_links(state, category):
            if entry.error is None or entry.error.errno in IN_THE_WAY:
                entries[entry.path] = entry.target
            elif not isinstance(entry.error, FileNotFoundError):
                raise entry.error
    return entries


# -- the walk ----------------------------------------------------------------------------------


def walk(state: RepoState, ids: Iterable[ObjectId], cache: Cache | None = None) -> Reached:
    """Everything that is reached from *ids*, which lead to streams or images; the nodes stay in memory.  Blocks.

    Raises:
        ReachUnknownError: what is reached cannot be told, because something that is needed for it is damaged.
        OSError: something that is needed for it could not be read.
    """
    reached = Reached()
    for object_id, node in visit(state, ids, cache, reached):
        reached.nodes[object_id] = node
    return reached


def visit(
    state: RepoState, ids: Iterable[ObjectId], cache: Cache | None, reached: Reached
) -> Iterator[tuple[ObjectId, Node]]:
    """Follow what *ids* lead to one node at a time, so that not all need be kept.

    Args:
        reached: takes what is missing; what it has seen is not visited again, but for what was missing.
    """
    # What was missing may have come since.
    pending = [*reached.missing, *reversed(dict.fromkeys(ids))]
    seen = reached.seen
    seen -= reached.missing
    reached.missing.clear()
    while pending:
        object_id = pending.pop()
        if object_id in seen:
            continue
        seen.add(object_id)
        node = cache.get(object_id) if cache else None
        if node is None:
            node = _read(state, object_id, reached)
            if node is None:
                continue
            if cache:
                cache.put(object_id, node)
        yield object_id, node
        pending.extend(target for _, target in reversed(node.named))


def _read(state: RepoState, object_id: ObjectId, reached: Reached) -> Node | None:
    path = f"objects/{object_id.path}"
    try:
        return read_node(state, object_id)
    except ObjectNotFoundError:
        reached.missing.add(object_id)
        return None
    except (IntegrityError, FormatError, AlgorithmMismatchError) as error:
        reached.seen.discard(object_id)
        raise ReachUnknownError(path, str(error)) from error
    except OSError as error:
        reached.seen.discard(object_id)
        if error.errno in IN_THE_WAY:
            raise ReachUnknownError(path, error.strerror or "") from error
        reason = f"could not be read: {error.strerror}"
        raise OSError(error.errno, reason, os.path.join(state.path, path)) from error
