"""The members of an archive by name, with links followed inside it; and an index of an uncompressed archive.

Owns what a name inside an archive means: cleaned lexically, relative to its top, never above it.  Does not own what tar
headers mean (`tarheader`), nor what the members are for.  Memory is bounded by the number of members and their names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from ...errors import OciError, TarError, inputs_named
from ..tar.header import BLOCK, EntryType, HeaderParser
from ..tar.header import Member as TarMember
from .base import LocalBlob
from .store import MissingError

__all__ = ["MAX_MEMBERS", "ArchiveStore", "MemberTable", "clean_name"]

MAX_MEMBERS = 1_000_000
_MAX_NAME = 4096  # bytes
_MAX_LINKS = 8  # that are followed from one name

T = TypeVar("T")


def clean_name(name: str, start: str = "") -> str | None:
    """*name*, seen from the directory *start*, without ``.``, ``..`` and needless slashes; None above the top."""
    parts: list[str] = []
    for part in f"{start}/{name}".split("/"):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


class MemberTable(Generic[T]):
    """What stands in an archive under which name; the last member of a name counts, as for tar.

    Args:
        place: what messages call the archive.
        once: names that must not occur twice.
    """

    def __init__(self, place: str, once: frozenset[str] = frozenset({"index.json", "manifest.json"})) -> None:
        self._place, self._once = place, once
        self._found: dict[str, T] = {}
        self._links: dict[str, str] = {}
        self._count = 0

    def add(self, member: TarMember, value: T) -> None:
        """Note a member; *value* is kept for regular files.

        Raises:
            OciError: its name would leave the archive, is too long, or must not come twice; or there are too many.
        """
        self._count += 1
        if self._count > MAX_MEMBERS:
            raise OciError(self._place, f"it has more than {MAX_MEMBERS} members")
        if len(member.path) > _MAX_NAME or len(member.link) > _MAX_NAME:
            raise OciError(self._place, f"the name of a member has more than {_MAX_NAME} bytes")
        name = clean_name(os.fsdecode(member.path))
        if name is None:
            raise OciError(self._place, f"member {os.fsdecode(member.path)!r} is outside the archive")
        if member.type is EntryType.DIRECTORY:
            return
        if name in self._once and (name in self._found or name in self._links):
            raise OciError(self._place, f"it has two members {name}")
        self._found.pop(name, None)
        self._links.pop(name, None)
        if member.type is EntryType.FILE:
            self._found[name] = value
        elif member.type in (EntryType.SYMLINK, EntryType.HARDLINK):
            start = name.rpartition("/")[0] if member.type is EntryType.SYMLINK else ""
            target = clean_name(os.fsdecode(member.link), start)
            self._links[name] = "" if target is None or member.link.startswith(b"/") else target

    def find(self, name: str) -> T | None:
        """The regular file of that name, links followed; None if there is none.

        Raises:
            OciError: links lead in a circle, through too many names, or out of the archive.
        """
        at = clean_name(name)
        for _ in range(_MAX_LINKS + 1):
            if at is None or at in self._found or at not in self._links:
                return None if at is None else self._found.get(at)
            at = self._links[at]
            if not at:
                raise OciError(self._place, f"member {name!r} is a link that leads out of the archive")
        raise OciError(self._place, f"member {name!r} is a link through more than {_MAX_LINKS} names")


@dataclass(frozen=True, slots=True)
class _Place:
    offset: int
    size: int


class ArchiveStore:
    """A `BlobStore` of the members of an uncompressed tar archive in a regular file; blocks.

    Args:
        fd: open for reading; stays the caller's.
        name: what messages call the archive.
        start: where it begins in the file.
    """

    def __init__(self, fd: int, name: str, start: int = 0) -> None:
        self._fd, self._name = fd, name
        self._table: MemberTable[_Place] = MemberTable(name)
        with inputs_named(name):
            self._walk(start, os.fstat(fd).st_size)

    def _walk(self, start: int, end: int) -> None:
        parser, offset, last = HeaderParser(), start, ""
        while offset < end:
            header = os.pread(self._fd, BLOCK, offset)
            if len(header) < BLOCK:
                raise TarError(f"the archive is cut off{last}", offset)
            if not any(header):
                break
            parsed = parser.parse(header, offset)
            body = offset + BLOCK
            if parsed.size > end - body:
                name = os.fsdecode(parsed.member.path) if parsed.member else "an extension header"
                raise TarError(f"the archive is cut off in {name!r}, which has {parsed.size} bytes", offset)
            if parsed.collect:
                parser.extension(os.pread(self._fd, parsed.size, body))
            if parsed.member is not None:
                self._table.add(parsed.member, _Place(body, parsed.size))
                last = f" after {os.fsdecode(parsed.member.path)!r}"
            offset = body + parsed.size + -parsed.size % BLOCK
        parser.check_end(min(offset, end))

    def path(self, name: str) -> str:
        """Return what messages call the member *name*."""
        return f"{self._name}: {name}"

    def has(self, name: str) -> bool:
        """True if the archive has a member *name*."""
        return self._table.find(name) is not None

    def read(self, name: str, limit: int) -> bytes:
        """Return the content of the member *name*, of at most *limit* bytes."""
        place = self._place(name)
        if place.size > limit:
            raise OciError(self.path(name), f"it is larger than the limit of {limit} bytes")
        raw = os.pread(self._fd, place.size, place.offset)
        if len(raw) != place.size:
            raise OciError(self._name, "the file has changed while it was read")
        return raw

    @contextmanager
    def open(self, name: str) -> Iterator[LocalBlob]:
        """Open the member *name*, which is read at its place in the archive; closed on leaving."""
        place = self._place(name)
        yield LocalBlob(self._fd, place.size, self.path(name), place.offset)

    def _place(self, name: str) -> _Place:
        place = self._table.find(name)
        if place is None:
            raise MissingError(f"{self.path(name)} is missing")
        return place
