"""The directories of objects, 256 of them, compared with ids and emptied: natively where that is built.

Owns the choice and the Python twins.  Does not own what is done with the answers (`survey`, `collect`).  Ids stand
packed one after the other, as many bytes each as the algorithm's digests have.
"""

from __future__ import annotations

import errno
import os
import stat
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from ... import _native
from ..._sys.beneath import open_beneath, opened_beneath
from ...digest import ObjectId
from ...errors import FormatError

__all__ = ["NEVER", "SHARDS", "WORKERS", "Listing", "compare", "pieces", "remove", "sort_ids"]

SHARDS = 256
NEVER = (1 << 63) - 1
"""A time after all others."""

NATIVE = _native.BACKEND == "native"
if NATIVE:
    from ..._native import _core

WORKERS = (os.cpu_count() or 1) if NATIVE else 1
"""Threads that are worth it: those in Python would only take the interpreter lock from each other."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What is in one directory."""

    matched: int
    """Objects that were among the ids."""
    dead: bytes
    """Ids of the others."""
    sizes: array[int]
    """Of those, in bytes."""
    young: bytes
    """Ids of those that were stored since the time that was given."""
    others: list[tuple[bytes, int]]
    """Name and mode of what is no object."""


def pieces(ids: bytes, width: int) -> Iterator[bytes]:
    """One id after the other."""
    return (ids[at : at + width] for at in range(0, len(ids), width))


def sort_ids(ids: bytes, width: int) -> bytes:
    """The ids sorted, each once."""
    return _core.sort_ids(ids, width) if NATIVE else b"".join(sorted(set(pieces(ids, width))))


def compare(objects_fd: int, shard: int, ids: bytes, width: int, since: int) -> Listing:
    """Compare a directory, which may not be there, with the sorted *ids*, and look at each object that is not there.

    Args:
        since: in nanoseconds; objects that were stored then or later are `Listing.young`.

    Raises:
        OSError: the directory is none, or cannot be read.
    """
    try:
        if not NATIVE:
            return _compare(objects_fd, shard, ids, width, since)
        number, matched, dead, sizes, young, others = _core.compare_shard(objects_fd, shard, ids, width, since)
        if number:
            raise OSError(number, os.strerror(number))
        return Listing(matched, dead, array("Q", sizes), young, others)
    except OSError as error:
        error.filename = f"objects/{shard:02x}"
        raise


def _compare(objects_fd: int, shard: int, ids: bytes, width: int, since: int) -> Listing:
    live = {piece.hex()[2:] for piece in pieces(ids, width)}
    matched, sizes = 0, array("Q")
    dead, young = bytearray(), bytearray()
    others: list[tuple[bytes, int]] = []
    try:
        fd = open_beneath(f"{shard:02x}", os.O_RDONLY | os.O_DIRECTORY, dir_fd=objects_fd)
    except FileNotFoundError:
        return Listing(0, b"", sizes, b"", others)
    try:
        for name in os.listdir(fd):
            if name in live:
                matched += 1
                continue
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            object_id = _parse(shard, name, width) if stat.S_ISREG(status.st_mode) else None
            if object_id is None:
                others.append((os.fsencode(name), status.st_mode))
            elif status.st_ctime_ns >= since:
                young += object_id
            else:
                dead += object_id
                sizes.append(status.st_size)
    finally:
        os.close(fd)
    return Listing(matched, bytes(dead), sizes, bytes(young), others)


def _parse(shard: int, name: str, width: int) -> bytes | None:
    try:
        object_id = ObjectId.from_path(f"{shard:02x}/{name}")
    except FormatError:
        return None
    return object_id if len(object_id) == width and object_id.hex()[2:] == name else None


def remove(objects_fd: int, ids: bytes, width: int) -> tuple[bytes, OSError | None]:
    """Unlink objects in their order, up to an error: for each 1 if it was there, otherwise 0; and the error."""
    if NATIVE:
        statuses, number = _core.remove_objects(objects_fd, ids, width)
    else:
        statuses, number = _remove(objects_fd, ids, width)
    if not number:
        return statuses, None
    failed = ObjectId(ids[len(statuses) * width :][:width])
    return statuses, OSError(number, os.strerror(number), f"objects/{failed.path}")


def _remove(objects_fd: int, ids: bytes, width: int) -> tuple[bytes, int]:
    statuses = bytearray()
    for object_id in pieces(ids, width):
        digits = object_id.hex()
        try:
            with opened_beneath(digits[:2], os.O_PATH | os.O_DIRECTORY, dir_fd=objects_fd) as fd:
                os.unlink(digits[2:], dir_fd=fd)
            statuses.append(1)
        except FileNotFoundError:
            statuses.append(0)
        except OSError as error:
            return bytes(statuses), error.errno or errno.EIO
    return bytes(statuses), 0
