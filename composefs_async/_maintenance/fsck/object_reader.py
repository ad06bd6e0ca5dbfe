"""Objects read into one buffer and compared with their names, many in one call: natively where that is built.

Owns the choice and the Python twins, and the reading of objects that do not fit into a buffer.  Does not own what is
made of a failure (`objects`).  Ids stand packed one after the other.
"""

from __future__ import annotations

import errno
import os
import stat
from array import array
from collections.abc import Callable
from typing import NamedTuple

from ... import _native, fsverity
from ..._repo.state import RepoState
from ..._sys import verity
from ...digest import ObjectId
from ...errors import AlgorithmMismatchError, VerityMissingError, VerityNotSupportedError

__all__ = ["BUFFER_SIZE", "NATIVE", "Failure", "Loaded", "load", "load_large", "load_one", "sizes"]

BUFFER_SIZE = 1 << 20
_FLAGS = os.O_RDONLY | os.O_NONBLOCK

NATIVE = _native.BACKEND == "native"
if NATIVE:
    from ..._native import _core


class Failure(NamedTuple):
    """What is wrong with an object."""

    at: int
    """Which of the ids."""
    error: int
    """An errno, or 0."""
    step: str
    """``open``, ``type`` (no regular file), ``large`` (it does not fit into the buffer alone), ``read``, ``measure``
    (0: by another algorithm) or ``digest``."""
    digest: bytes = b""
    """What the object is instead, after ``digest``."""


class Loaded(NamedTuple):
    """What `load` has done."""

    taken: int
    """How many of the ids, at least one."""
    sizes: array[int]
    """Of those; -1 for an object that is not in the buffer."""
    failures: list[Failure]


def sizes(state: RepoState, ids: bytes) -> array[int]:
    """The size of each object; negative if it is missing or no regular file.  About a microsecond each."""
    if NATIVE and state.in_one_place:
        return array("q", _core.object_sizes(state.objects_fd, ids, state.algorithm.number))
    width, found = state.algorithm.digest_size, array("q")
    for at in range(0, len(ids), width):
        try:
            status = state.lstat(f"objects/{ObjectId(ids[at : at + width]).path}")
        except OSError:
            found.append(-1)
        else:
            found.append(status.st_size if stat.S_ISREG(status.st_mode) else -1)
    return found


def load(state: RepoState, ids: bytes, buffer: bytearray) -> Loaded:
    """Read objects one after the other into *buffer*, as many as fit, and compare them with their ids.

    In a secure repository the kernel must guard each under its id, too.
    """
    if NATIVE and state.in_one_place:
        taken, found, failures = _core.load_objects(state.objects_fd, ids, buffer, state.algorithm.number, state.secure)
        return Loaded(taken, array("q", found), [Failure(*each) for each in failures])
    width = state.algorithm.digest_size
    view, filled = memoryview(buffer), 0
    loaded = Loaded(0, array("q"), [])
    for index, at in enumerate(range(0, len(ids), width)):
        object_id = ObjectId(ids[at : at + width])
        size = load_one(state, object_id, index, view[filled:], len(buffer), loaded.failures)
        if size is None:
            return loaded._replace(taken=index)
        loaded.sizes.append(size)
        filled += max(size, 0)
    return loaded._replace(taken=len(loaded.sizes))


def load_one(
    state: RepoState, object_id: ObjectId, index: int, room: memoryview, most: int, failures: list[Failure]
) -> int | None:
    """Read one object in Python: its size, -1 if it is not in *room*, or None if it would fit into an empty buffer.

    Args:
        index: for the failures, which it adds.
        most: the size of an empty buffer.
    """
    step = "open"
    try:
        with state.opened_object_file(object_id.path, _FLAGS) as fd:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size > most:
                failures.append(Failure(index, 0, "large" if stat.S_ISREG(status.st_mode) else "type"))
                return -1
            if status.st_size > len(room):
                return None
            step = "read"
            size = _read_full(fd, room[: status.st_size])
            if state.is_guarded(object_id) and (failure := _measure(state, fd, object_id, index)):
                failures.append(failure)
    except OSError as error:
        failures.append(Failure(index, error.errno or 0, step))
        return -1
    if (found := fsverity.digest(room[:size], state.algorithm)) != object_id:
        failures.append(Failure(index, 0, "digest", found))
    return size


def _read_full(fd: int, room: memoryview) -> int:
    filled = 0
    while filled < len(room) and (got := os.readv(fd, [room[filled:]])):
        filled += got
    return filled


def _measure(state: RepoState, fd: int, object_id: ObjectId, index: int) -> Failure | None:
    try:
        found = verity.measure(fd, state.algorithm, "")
    except (VerityMissingError, VerityNotSupportedError):
        return Failure(index, errno.ENODATA, "measure")
    except AlgorithmMismatchError:
        return Failure(index, 0, "measure")
    except OSError as error:
        return Failure(index, error.errno or 0, "measure")
    return None if found == object_id else Failure(index, 0, "digest", found)


def load_large(state: RepoState, object_id: ObjectId, take: Callable[[memoryview], object]) -> Failure | None:
    """Read one object in pieces that *take* gets one after the other; the same checks."""
    hasher, step = fsverity.Hasher(state.algorithm), "open"
    room = memoryview(bytearray(BUFFER_SIZE))
    try:
        with state.opened_object_file(object_id.path, _FLAGS) as fd:
            if state.is_guarded(object_id) and (failure := _measure(state, fd, object_id, 0)):
                return failure
            step = "read"
            while size := _read_full(fd, room):
                hasher.update(room[:size])
                take(room[:size])
    except OSError as error:
        return Failure(0, error.errno or 0, step)
    return None if (found := hasher.id()) == object_id else Failure(0, 0, "digest", found)
