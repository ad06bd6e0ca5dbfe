"""The unpacked files of a layer, opened by the names that its tar has, and the layer put together from them; blocks.

Nothing outside a layer's directory is ever opened: links in it mean what they meant when it was unpacked, with that
directory as the root. A layer that composefs backs has its files under their SHA-256, and an EROFS image that says
which is which: it is read by this package's reader, without a mount.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from ...._sys.beneath import open_beneath
from ...._sys.in_root import open_in_root
from ....erofs.reader.tree import image_to_tree
from ....errors import ErofsError, OciError
from ....tree import Directory, ExternalFile, InlineFile, Symlink
from ..base import Cloner
from .recipe import FilePart

__all__ = ["DamagedFileError", "LayerFiles", "LayerReader", "damaged_files"]

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_BLOB = "composefs-data/composefs.blob"
_BLOB_LIMIT = 1 << 30  # bytes of an EROFS image
_MAX_LINKS = 40
_PIECE = 1 << 20
_NAMED = 10  # damaged files that a message lists


class DamagedFileError(OciError):
    """A file of a layer is not what was unpacked."""


class LayerFiles:
    """Opens files of one layer.

    Args:
        layer: for messages.
        roots: the directory of the layer, then those of the layers below it, for files that are not there.
    """

    def __init__(self, layer: str, roots: Sequence[Path]) -> None:
        self._layer = layer
        self._roots: list[int] = []
        self._mapped: Directory | None = None
        try:
            for root in roots:
                with suppress(FileNotFoundError):
                    self._roots.append(os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
            if not self._roots:
                raise OciError(layer, f"its directory {roots[0]} is missing")
            self._mapped = self._composefs(roots[0].parent)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the directories."""
        while self._roots:
            os.close(self._roots.pop())

    def _composefs(self, layer: Path) -> Directory | None:
        try:
            fd = os.open(layer / _BLOB, _FLAGS)
        except (FileNotFoundError, NotADirectoryError):
            return None
        with open(fd, "rb") as file:
            size = os.fstat(fd).st_size
            if size > _BLOB_LIMIT:
                raise OciError(self._layer, f"{layer / _BLOB} has {size} bytes, more than {_BLOB_LIMIT}")
            raw = file.read()
        try:
            return image_to_tree(raw)
        except ErofsError as error:
            raise OciError(self._layer, f"{layer / _BLOB} is damaged: {error.reason}") from None

    def open(self, part: FilePart) -> int | bytes:
        """A descriptor of a file's content, which the caller closes, or the content itself.

        Raises:
            DamagedFileError: it is missing, no regular file, or of another size.
            PermissionError: with the path.
        """
        name = _cleaned(part.name)
        fd = self._mapped_file(name) if self._mapped is not None else self._plain_file(name)
        if isinstance(fd, bytes):
            if len(fd) != part.size:
                raise self.damaged(part.name, f"has {len(fd)} bytes, not {part.size}")
            return fd
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size != part.size:
            os.close(fd)
            what = f"has {status.st_size} bytes, not {part.size}" if stat.S_ISREG(status.st_mode) else "is no file"
            raise self.damaged(part.name, what)
        return fd

    def _plain_file(self, name: bytes) -> int:
        for root_fd in self._roots:
            try:
                return open_in_root(name, _FLAGS, root_fd=root_fd)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except PermissionError as error:
                error.filename = f"{_path(root_fd)}/{os.fsdecode(name)}"
                raise
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENAMETOOLONG, errno.EXDEV):
                    raise self.damaged(name, "is no file") from None
                raise
        raise self.damaged(name, "is missing")

    def _mapped_file(self, name: bytes) -> int | bytes:
        assert self._mapped is not None
        found = _find(self._mapped, name)
        if isinstance(found, InlineFile):
            return found.content
        if not isinstance(found, ExternalFile):
            raise self.damaged(name, "is missing")
        path = os.fsdecode(found.path).lstrip("/")
        try:
            return open_beneath(path, _FLAGS, dir_fd=self._roots[0])
        except PermissionError as error:
            error.filename = f"{_path(self._roots[0])}/{path}"
            raise
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
                raise self.damaged(name, "is missing") from None
            raise

    def damaged(self, name: bytes, what: str) -> DamagedFileError:
        """The error for a file."""
        shown = name.decode("utf-8", "backslashreplace")
        return DamagedFileError(self._layer, f"{shown} {what}; pull the image again, or from its registry")


def _cleaned(name: bytes) -> bytes:
    """A member's name as it was unpacked: lexically, and never above the top."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)


def _path(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


def _find(root: Directory, name: bytes) -> object:
    """What *name* leads to in a tree; links in the middle are followed, with the tree as their root."""
    parts, here, links = name.split(b"/"), [root], 0
    while parts:
        part = parts.pop(0)
        if part in (b"", b"."):
            continue
        if part == b"..":
            here = here[:-1] or [root]
            continue
        child = here[-1].children.get(part)
        if isinstance(child, Symlink) and parts:
            links += 1
            if links > _MAX_LINKS:
                return None
            if child.target.startswith(b"/"):
                here = [root]
            parts = child.target.split(b"/") + parts
        elif isinstance(child, Directory):
            here.append(child)
        else:
            return child if not any(parts) else None
    return here[-1]


class LayerReader:
    """The tar of a layer, from its recipe and its files, read piece by piece."""

    def __init__(self, parts: Iterator[bytes | FilePart], files: LayerFiles) -> None:
        self._parts, self._files = parts, files
        self._here = memoryview(b"")
        self._fd = -1
        self._at = self._left = self._offset = 0
        self._name = b""
        self._cloner: Cloner | None = None

    def offer(self, cloner: Cloner) -> None:
        """Have the content of files shared where *cloner* can; call it before the first read."""
        self._cloner = cloner

    def close(self) -> None:
        """Close the file that is being read."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def readinto(self, view: memoryview) -> int:
        """Put the next bytes at the front of *view*; returns how many, 0 at the end.

        Raises:
            OciError: the recipe is damaged.
            DamagedFileError: a file is not what it should be.
        """
        filled, room = 0, len(view)
        while filled < room:
            if self._here:
                size = min(len(self._here), room - filled)
                view[filled : filled + size] = self._here[:size]
                self._here = self._here[size:]
            elif self._fd >= 0:
                size = self._read(view[filled:])
            else:
                part = next(self._parts, None)
                if part is None:
                    break
                self._begin(part)
                continue
            filled += size
            self._offset += size
        return filled

    def _begin(self, part: bytes | FilePart) -> None:
        if isinstance(part, bytes):
            self._here = memoryview(part)
            return
        opened = self._files.open(part)
        if isinstance(opened, bytes):
            self._here = memoryview(opened)
        else:
            self._fd, self._at, self._left, self._name = opened, 0, part.size, part.name
            if self._cloner is not None:
                clone = self._cloner.clone(opened, self._offset, part.size)
                if clone is not None:
                    self._fd = clone
                    os.close(opened)

    def _read(self, view: memoryview) -> int:
        size = os.preadv(self._fd, [view[: self._left]], self._at)
        if not size:
            raise self._files.damaged(self._name, "has been cut short")
        self._at += size
        self._left -= size
        if not self._left:
            self.close()
        return size


# -- naming what is damaged ----------------------------------------------------------------------


def damaged_files(parts: Iterator[bytes | FilePart], files: LayerFiles) -> list[bytes]:
    """The names of files that have another checksum than was noted when they were unpacked; at most ten.

    Slow: some 20 MB a second.
    """
    found: list[bytes] = []
    for part in parts:
        if isinstance(part, FilePart) and len(found) < _NAMED:
            try:
                opened = files.open(part)
            except OciError:
                found.append(part.name)
                continue
            try:
                if len(part.checksum) == 8 and _checksum(opened) != part.checksum:
                    found.append(part.name)
            finally:
                if isinstance(opened, int):
                    os.close(opened)
    return found


def _checksum(opened: int | bytes) -> bytes:
    crc = _MASK
    if isinstance(opened, bytes):
        crc = _update(crc, opened)
    else:
        at = 0
        while piece := os.pread(opened, _PIECE, at):
            crc = _update(crc, piece)
            at += len(piece)
    return (crc ^ _MASK).to_bytes(8, "big")


_MASK = (1 << 64) - 1
_POLYNOMIAL = 0xD800000000000000  # CRC-64 of ISO 3309, reflected (hash/crc64 of Go)


@cache
def _tables() -> list[list[int]]:
    """By two bytes at a time: what those at the places 0, 2, 4 and 6 of a word contribute."""
    one = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (_POLYNOMIAL if crc & 1 else 0)
        one.append(crc)

    def passed(crc: int) -> int:
        return one[crc & 0xFF] ^ (crc >> 8)

    last = [passed(passed(pair)) for pair in range(1 << 16)]
    tables = [last]
    for _ in range(3):
        tables.append([passed(passed(crc)) for crc in tables[-1]])
    return tables[::-1]


def _update(crc: int, data: bytes) -> int:
    first, second, third, fourth = _tables()
    whole = len(data) & ~7
    for (word,) in struct.iter_unpack("<Q", memoryview(data)[:whole]):
        crc ^= word
        crc = first[crc & 0xFFFF] ^ second[crc >> 16 & 0xFFFF] ^ third[crc >> 32 & 0xFFFF] ^ fourth[crc >> 48]
    for byte in data[whole:]:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (_POLYNOMIAL if crc & 1 else 0)
    return crc
