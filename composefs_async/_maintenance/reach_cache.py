"""Remembers on disk what streams and images refer to, so that the next walk reads only those that are new.

Owns the file ``.composefs-async/reach``.  An entry is known by the id of the object that it was read from, which has
one content for ever, so it cannot become false; whether an entry is what was written is told by a checksum of its own.
A file that is cut, damaged or gone costs the time to read the objects again.

The file is a sequence of entries: the header below, the named references as ``ID name NUL …``, and the ids of objects.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Self

from .._repo.state import RepoState
from .._sys.beneath import open_beneath
from ..digest import ObjectId
from . import state_dir
from .reachability import Kind, Node

__all__ = ["NAME", "ReachCache"]

NAME = "reach"

_MAGIC = b"reach\x002\n"
_ENTRY = struct.Struct("<16sBBxxII64s")
"""Checksum of all that follows in the entry; number of the kind; size of an id; sizes of the two parts; the id."""
_CHECKSUM = 16
_KINDS = dict(enumerate(Kind))
_NUMBERS = {kind: number for number, kind in _KINDS.items()}


class ReachCache:
    """Entries of the file, which stays in memory until `close`, and new ones; `save` writes those that were used."""

    def __init__(self, content: bytes = b"") -> None:
        self._content = memoryview(content)
        self._places = _scan(self._content)
        self._used: dict[ObjectId, tuple[int, int] | bytes] = {}  # places in the file, or new entries
        self._changed = False

    @classmethod
    def open(cls, state: RepoState) -> Self:
        """The cache of a repository; an empty one if there is none, or none that can be read."""
        try:
            fd = open_beneath(f"{state_dir.DIRECTORY}/{NAME}", os.O_RDONLY | os.O_NONBLOCK, dir_fd=state.fd)
            # Not mapped: a block that cannot be read would kill the process.
            with open(fd, "rb", buffering=0) as file:
                return cls(file.readall())
        except OSError:
            return cls()

    def close(self) -> None:
        self._content.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, object_id: ObjectId, /) -> Node | None:
        """What was remembered of an object, checked."""
        place = self._places.get(object_id)
        if place is None:
            return None
        node = _unpack(self._content[place[0] : place[1]])
        if node is not None:
            self._used[object_id] = place
        return node

    def put(self, object_id: ObjectId, node: Node, /) -> None:
        self._used[object_id] = _pack(object_id, node)
        self._changed = True

    def save(self, state: RepoState) -> None:
        """Replace the file by one with what was got or put, if that is something else.  Not durable."""
        if not self._changed and len(self._used) == len(self._places):
            return
        entries = (
            entry if isinstance(entry, bytes) else self._content[entry[0] : entry[1]] for entry in self._used.values()
        )
        state_dir.write(state, NAME, _writer(entries))


def _writer(entries: Iterable[bytes | memoryview]) -> Callable[[int], None]:
    def fill(fd: int) -> None:
        with open(fd, "wb", closefd=False) as file:
            file.write(_MAGIC)
            file.writelines(entries)

    return fill


def _scan(content: memoryview) -> dict[ObjectId, tuple[int, int]]:
    """Where each entry is, as far as the headers make sense."""
    places: dict[ObjectId, tuple[int, int]] = {}
    if content[: len(_MAGIC)] != _MAGIC:
        return places
    at = len(_MAGIC)
    while at + _ENTRY.size <= len(content):
        _, kind, width, named, objects, object_id = _ENTRY.unpack_from(content, at)
        end = at + _ENTRY.size + named + objects
        if kind not in _KINDS or width not in (32, 64) or objects % width or end > len(content):
            break
        places[ObjectId(object_id[:width])] = (at, end)
        at = end
    return places


def _pack(object_id: ObjectId, node: Node) -> bytes:
    named = b"".join(target + name.encode() + b"\0" for name, target in node.named)
    lengths = (_NUMBERS[node.kind], len(object_id), len(named), len(node.objects), object_id)
    entry = _ENTRY.pack(b"", *lengths)[_CHECKSUM:] + named + node.objects
    return _digest(entry) + entry


def _unpack(entry: memoryview) -> Node | None:
    """None if it is not what was written."""
    checksum, kind, width, length, _, _ = _ENTRY.unpack_from(entry)
    if _digest(entry[_CHECKSUM:]) != checksum:
        return None
    named = bytes(entry[_ENTRY.size : _ENTRY.size + length])
    refs: list[tuple[str, ObjectId]] = []
    at = 0
    while at < length:
        stop = named.index(0, at + width)
        refs.append((named[at + width : stop].decode(), ObjectId(named[at : at + width])))
        at = stop + 1
    return Node(_KINDS[kind], bytes(entry[_ENTRY.size + length :]), tuple(refs))


def _digest(content: bytes | memoryview) -> bytes:
    return blake2b(content, digest_size=_CHECKSUM).digest()
