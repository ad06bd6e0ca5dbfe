"""Another look at something that a check found wrong: whether that can be seen, or only could not be read.

Owns what counts as proof.  A repair replaces and moves things because of what is seen here, at the time, and never
because of an error that says nothing about them (`_sys.errnos`).
"""

from __future__ import annotations

import enum
import errno
import os
import stat

from ... import fsverity
from ..._repo.state import RepoState
from ..._sys import errnos, files, verity
from ...digest import ObjectId
from ...errors import AlgorithmMismatchError, FormatError, VerityMissingError, VerityNotSupportedError

__all__ = ["Seen", "is_no_object", "look"]

_FLAGS = os.O_RDONLY | os.O_NONBLOCK
_READ_SIZE = 1 << 20
_BAD_DESCRIPTOR = (errno.EINVAL, errno.EBADMSG)
"""What opening a file answers where what fs-verity keeps of it is damaged."""


class Seen(enum.Enum):
    """What there is at the path of an object."""

    RIGHT = "what its id says"
    ABSENT = "nothing"
    WRONG = "something else: other content, no regular file, or no protection where that is required"
    BAD_BLOCKS = "a file whose content the kernel refuses, again: replaced when there is the right content, never moved"
    UNKNOWN = "nobody knows: it cannot be reached now"


def look(state: RepoState, object_id: ObjectId) -> Seen:
    """Read an object whole.  Blocks."""
    try:
        with state.opened_object_file(object_id.path, _FLAGS) as fd:
            return _look_into(state, fd, object_id)
    except OSError as error:
        if errnos.is_absent(error):
            return Seen.ABSENT
        if error.errno in _BAD_DESCRIPTOR:
            return Seen.BAD_BLOCKS
        return Seen.UNKNOWN if errnos.is_unread(error) else Seen.WRONG


def _look_into(state: RepoState, fd: int, object_id: ObjectId) -> Seen:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return Seen.WRONG
    hasher, offset = fsverity.Hasher(state.algorithm), 0
    try:
        while piece := os.pread(fd, _READ_SIZE, offset):
            hasher.update(piece)
            offset += len(piece)
    except OSError as error:
        return Seen.BAD_BLOCKS if error.errno in errnos.BAD_BLOCKS else Seen.UNKNOWN
    if hasher.id() != object_id:
        return Seen.WRONG
    try:
        if state.is_guarded(object_id) and verity.measure(fd, state.algorithm, "") != object_id:
            return Seen.WRONG
    except (VerityMissingError, VerityNotSupportedError, AlgorithmMismatchError):
        return Seen.WRONG
    return Seen.RIGHT


def is_no_object(state: RepoState, path: str) -> bool:
    """Whether what stands at *path*, below ``objects/``, is seen to be no object and no directory of objects.

    Raises:
        OSError: it cannot be told.
    """
    with files.naming(state.path):
        try:
            mode = state.lstat(path).st_mode
        except FileNotFoundError:
            return False
    if path.count("/") == 1:
        return not stat.S_ISDIR(mode)
    try:
        object_id = ObjectId.from_path(path)
    except FormatError:
        return True
    return object_id.algorithm is not state.algorithm or look(state, object_id) is Seen.WRONG
