"""Checks of ``objects/``: every object against its name, and what else is there.

Owns what is made of a failure to read an object.  Does not own reading (`loading`).
"""

from __future__ import annotations

import errno
import os
import re
import stat

from ..._sys import files
from ..._sys.beneath import opened_trusted
from ...digest import ObjectId
from ..gc.shards import NEVER, compare
from .context import Run, file_type, os_text, raise_ours
from .object_reader import Failure, load, load_large

__all__ = ["check_shard", "check_top", "object_failed", "object_not_found"]

_LOWER_HEX = re.compile(rb"[0-9a-f]*")
_SHARD_NAME = re.compile(r"[0-9a-f]{2}")
_BATCH = 1024
"""Objects that one call reads at most, so that stopping is prompt."""
_UNPROTECTED = (errno.ENODATA, errno.ENOTTY, errno.EOPNOTSUPP)
_READING = "Computing verity digest in userspace"
_NO_FILE = "it is no regular file"
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


def object_failed(run: Run, object_id: ObjectId, failure: Failure) -> None:
    """Make a finding of a failure.

    Raises:
        OSError: it says nothing about the object.
    """
    path, error = f"objects/{object_id.path}", failure.error
    raise_ours(error, path)
    match failure.step:
        case "open":
            run.failed("object-open-failed", path, error, detail=os_text(error))
        case "type":
            run.found("object-verity-failed", path, detail=_READING, cause=_NO_FILE)
        case "read":
            run.failed("object-verity-failed", path, error, detail=_READING, cause=os_text(error))
        case "measure" if error in _UNPROTECTED:
            run.found("object-verity-missing", path)
        case "measure":
            cause = os_text(error) if error else "it is protected by another algorithm"
            run.failed("object-verity-failed", path, error, detail="measuring fs-verity", cause=cause)
        case _:
            run.found("object-digest-mismatch", path, measured=failure.digest.hex())


def object_not_found(run: Run, kind: str, path: str, object_id: ObjectId, name: str = "") -> None:
    """Make a finding of an object that has no size: *kind* if nothing is there, another if something is in the way.

    Args:
        path: of what needs the object.
        name: of the reference to it, if it has one.
    """
    answer, detail = 0, _NO_FILE
    try:
        with run.state.opened_object_file(object_id.path, _FLAGS) as fd:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return  # it has come meanwhile
    except (FileNotFoundError, NotADirectoryError):
        run.found(kind, path, object_id=object_id, name=name)
        return
    except OSError as error:
        raise_ours(error, f"objects/{object_id.path}")
        detail, answer = os_text(error), error.errno or 0
    detail = f"checking named ref '{name}': {detail}" if name else detail
    run.failed("object-check-failed", path, answer, object_id=object_id, detail=detail)


def check_top(run: Run) -> list[int]:
    """The directories of objects that are there; says what else is."""
    try:
        with opened_trusted("objects", dir_fd=run.state.fd) as fd:
            names = sorted(os.listdir(fd))
            modes = {name: os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode for name in names}
    except FileNotFoundError:
        return []
    except OSError as error:
        raise_ours(error, "objects")
        run.failed("stat-failed", "objects", error, detail=os_text(error))
        return []
    found = []
    for name in names:
        if name.startswith(files.TMPFILE_PREFIX):
            run.found("leftover", f"objects/{name}")
        elif not _SHARD_NAME.fullmatch(name):
            run.found("stray-entry", f"objects/{name}", detail="it is no directory of objects")
        elif not stat.S_ISDIR(modes[name]):
            run.found("unexpected-file-type", f"objects/{name}", detail=file_type(modes[name]))
        else:
            found.append(int(name, 16))
    return found


def check_shard(run: Run, shard: int, *, read: bool = True) -> int:
    """Compare the objects of one directory with their names, except for those that have been; returns their number.

    Args:
        read: otherwise only names are looked at.
    """
    width = run.state.algorithm.digest_size
    try:
        listing = compare(run.state.objects_fd, shard, run.looked_at(shard), width, NEVER)
    except OSError as error:
        raise_ours(error, f"objects/{shard:02x}")
        run.failed("stat-failed", f"objects/{shard:02x}", error, detail=os_text(error))
        return 0
    others = [name for name, _ in listing.others]
    odd = [name for name in others if not (len(name) == 2 * width - 2 and _LOWER_HEX.fullmatch(name))]
    count = listing.matched + len(listing.dead) // width + len(others) - _check_odd(run, shard, sorted(odd))
    if read:
        strange = b"".join(bytes.fromhex(f"{shard:02x}{name.decode()}") for name in {*others} - {*odd})
        _check_ids(run, listing.dead + strange)
    return count


def _check_odd(run: Run, shard: int, names: list[bytes]) -> int:
    """Say what is wrong with names that are no ids; returns how many of them are not meant to be objects."""
    length, leftovers = 2 * run.state.algorithm.digest_size - 2, 0
    for name in names:
        path = f"objects/{shard:02x}/{os.fsdecode(name)}"
        if name.startswith(os.fsencode(files.TMPFILE_PREFIX)):
            leftovers += 1
            run.found("leftover", path)
        elif len(name) != length:
            run.found("object-invalid-name", path, detail="Invalid string length")
        elif wrong := re.search(rb"[^0-9a-fA-F]", name):
            where = f"Invalid character {wrong[0].decode('latin-1')!r} at position {wrong.start()}"
            run.found("object-invalid-name", path, detail=where)
        else:
            run.found("stray-entry", path, detail="its name is not in lower case, so that it is never found")
    return leftovers


def _check_ids(run: Run, ids: bytes) -> None:
    width, at = run.state.algorithm.digest_size, 0
    with run.buffer() as buffer:
        while at < len(ids):
            batch = ids[at : at + _BATCH * width]
            loaded = load(run.state, batch, buffer)
            run.pace(sum(size for size in loaded.sizes if size > 0))
            for failure in loaded.failures:
                _failed(run, ObjectId(batch[failure.at * width :][:width]), failure)
            at += loaded.taken * width


def _failed(run: Run, object_id: ObjectId, failure: Failure) -> None:
    if failure.step == "large":
        later = load_large(run.state, object_id, lambda piece: run.pace(len(piece)))
        if later:
            _failed(run, object_id, later)
    elif not (failure.step == "open" and failure.error == errno.ENOENT):  # gone since it was listed
        object_failed(run, object_id, failure)
