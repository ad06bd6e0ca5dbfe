"""Objects: files named by their fs-verity digest.

Each function leaves an object whole or not there; none makes it durable (`RepoState.syncs` does).  What stands
at an object's path with another size, or in a secure repository without the right protection, is corrupt and is
replaced atomically.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable
from contextlib import AbstractContextManager

from .. import fsverity
from .._sys import errnos, files, verity
from ..digest import ObjectId
from ..errors import (
    AlgorithmMismatchError,
    ComposefsError,
    DigestMismatchError,
    IntegrityError,
    ObjectNotFoundError,
    VerityMissingError,
    VerityNotSupportedError,
)
from ..results import StoredObject, StoreOutcome
from .state import DIRECTORY_MODE, FILE_MODE, RepoState

__all__ = [
    "abandon_tmpfile",
    "adopt_tmpfile",
    "create_object_tmpfile",
    "ensure_object",
    "ensure_object_from",
    "finalize_object_tmpfile",
    "has_object",
    "is_intact",
    "object_errors",
    "open_object",
    "publish_object_tmpfile",
    "read_object",
    "replace_object",
    "stands",
    "store_one",
]

_READ_SIZE = 1 << 20


def object_errors(state: RepoState) -> AbstractContextManager[None]:
    """Let errors of the system say where: writing to a descriptor knows no name, and others are relative."""
    return files.naming(_objects_path(state))


def _objects_path(state: RepoState) -> str:
    return os.path.join(state.path, "objects")


def has_object(state: RepoState, object_id: ObjectId) -> bool:
    """Whether something stands at the object's path, other than a link; that it cannot be reached is an error."""
    with object_errors(state):
        try:
            os.close(state.open_object_file(object_id.path, os.O_PATH))
        except OSError as error:
            if error.errno != errno.ENOENT and not _is_link(state, object_id, error):
                raise
            return False
    return True


def stands(state: RepoState, object_id: ObjectId) -> bool:
    """Whether anything stands at the object's path, other than a link; a file above it is as good as nothing.

    Raises:
        OSError: it cannot be told.
    """
    with object_errors(state):
        try:
            os.close(state.open_object_file(object_id.path, os.O_PATH))
        except OSError as error:
            if errnos.is_unread(error):
                raise
            return False
    return True


def _is_link(state: RepoState, object_id: ObjectId, error: OSError) -> bool:
    """Whether an object could not be opened because it is itself a link, and not the directory that it is in."""
    if error.errno != errno.ELOOP:
        return False
    path = f"objects/{object_id.path}"
    try:
        directory, found = state.lstat(os.path.dirname(path)), state.lstat(path)
    except OSError:
        return False
    return not stat.S_ISLNK(directory.st_mode) and stat.S_ISLNK(found.st_mode)


def ensure_object(state: RepoState, data: bytes | bytearray | memoryview, *, compare: bool = False) -> StoredObject:
    """Store *data* unless it is there.

    Args:
        compare: also read what is there, where the kernel does not guard it; size alone is believed otherwise.
    """
    with state.shared():
        state.require_writable()
        view = memoryview(data).cast("B")
        object_id = fsverity.digest(view, state.algorithm)
        outcome = store_one(state, view, object_id)
        if compare and outcome is StoreOutcome.PRESENT and not state.secure and _differs(state, object_id, view):
            outcome = _replace(state, object_id, view)
        state.stored.add([len(view)], [outcome])
        return StoredObject(object_id, len(view), outcome)


def _differs(state: RepoState, object_id: ObjectId, data: memoryview) -> bool:
    try:
        with open(open_object(state, object_id), "rb") as file:
            return file.read(len(data) + 1) != data
    except IntegrityError:
        return True


def _replace(state: RepoState, object_id: ObjectId, data: memoryview) -> StoreOutcome:
    with object_errors(state):
        tmpfile = _create_in_shard(state, object_id.path)
        try:
            files.write_all(tmpfile.fd, data)
            os.fsync(tmpfile.fd)
            replace_object(state, tmpfile, object_id)
        finally:
            tmpfile.discard()
    return StoreOutcome.REPLACED


def ensure_object_from(state: RepoState, pieces: Iterable[bytes]) -> StoredObject:
    """Store content that is never whole in memory; what taking *pieces* raises leaves nothing behind."""
    hasher = fsverity.Hasher(state.algorithm)
    with object_errors(state):
        tmpfile = create_object_tmpfile(state)
        try:
            for piece in pieces:
                hasher.update(piece)
                files.write_all(tmpfile.fd, piece)
            return publish_object_tmpfile(state, tmpfile, hasher.size, hasher.id())
        finally:
            tmpfile.discard()


def store_one(state: RepoState, data: memoryview, object_id: ObjectId) -> StoreOutcome:
    """Store *data*, whose digest the caller has computed: the Python twin of the native batch store."""
    path, objects_fd = object_id.path, state.objects_fd
    try:
        # An answer costs half as much as an exception; whatever hides behind "no" shows itself below.
        if os.access(path, os.F_OK, dir_fd=objects_fd) and is_intact(state, object_id, len(data)):
            return StoreOutcome.PRESENT
        tmpfile = _create_in_shard(state, path)
        try:
            files.write_all(tmpfile.fd, data)
            return _publish(state, tmpfile, len(data), object_id, path)
        finally:
            tmpfile.discard()
    except OSError as error:
        error.filename, error.filename2 = os.path.join(_objects_path(state), path), None
        raise


def create_object_tmpfile(state: RepoState) -> files.Tmpfile:
    """A file to be filled and given to one of the following functions; the caller owns it."""
    state.require_writable()
    with object_errors(state):
        return files.Tmpfile.create(".", FILE_MODE, dir_fd=state.objects_fd)


def adopt_tmpfile(state: RepoState, fd: int) -> files.Tmpfile:
    """Take over the descriptor of a tmpfile; a file that has a name elsewhere is copied, and stays its owner's."""
    try:
        status = os.fstat(fd)
        if not status.st_nlink:
            return files.Tmpfile(fd, None)
        path = files.path_of(fd)
        if path is not None and _is_our_name(state, path, status):
            return files.Tmpfile(fd, path)
        copy = create_object_tmpfile(state)
        try:
            files.copy_content(fd, copy.fd)
        except BaseException:
            copy.discard()
            raise
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return copy


def _is_our_name(state: RepoState, path: str, status: os.stat_result) -> bool:
    """Whether *path* is the temporary name, in ``objects/``, of the file that has that *status*."""
    name = os.path.basename(path)
    if not name.startswith(files.TMPFILE_PREFIX):
        return False
    try:
        return os.path.samestat(os.stat(name, dir_fd=state.objects_fd, follow_symlinks=False), status)
    except FileNotFoundError:
        return False


def abandon_tmpfile(state: RepoState, fd: int) -> None:
    """Close a tmpfile that is not to become an object, and remove its name if it has one of ours."""
    try:
        status, path = os.fstat(fd), files.path_of(fd)
        with contextlib.suppress(OSError, ComposefsError):
            if status.st_nlink and path is not None and _is_our_name(state, path, status):
                os.unlink(os.path.basename(path), dir_fd=state.objects_fd)
    finally:
        os.close(fd)


def finalize_object_tmpfile(state: RepoState, fd: int, size: int) -> StoredObject:
    """Turn a filled tmpfile into an object and close it, also when that fails."""
    tmpfile = adopt_tmpfile(state, fd)
    try:
        found = os.fstat(tmpfile.fd).st_size
        if found != size:
            raise IntegrityError(f"a temporary file holds {found} bytes, but {size} were announced")
        return publish_object_tmpfile(state, tmpfile, size, _digest_file(tmpfile.fd, state))
    finally:
        tmpfile.discard()


def publish_object_tmpfile(state: RepoState, tmpfile: files.Tmpfile, size: int, object_id: ObjectId) -> StoredObject:
    """Give a filled tmpfile, whose digest the caller has computed, its name; the caller discards it then."""
    with state.shared(), object_errors(state):
        if is_intact(state, object_id, size):
            outcome = StoreOutcome.PRESENT
        else:
            outcome = _publish(state, tmpfile, size, object_id, object_id.path)
        state.stored.add([size], [outcome])
        return StoredObject(object_id, size, outcome)


def replace_object(state: RepoState, tmpfile: files.Tmpfile, object_id: ObjectId) -> None:
    """Put a filled tmpfile, whose digest the caller has computed, at its path, atomically and whatever stands there.

    The caller discards it then, and has flushed it before: names that lead there may exist.
    """
    with state.shared(), object_errors(state):
        if state.verity_works is not False:
            _protect(state, tmpfile, object_id)
        try:
            _link(state, tmpfile, object_id.path)
        except FileExistsError:
            tmpfile.replace(object_id.path, dir_fd=state.objects_fd)


def open_object(state: RepoState, object_id: ObjectId) -> int:
    """A read-only descriptor that the caller closes; measured, as far as the file system can.

    Raises:
        ObjectNotFoundError, DigestMismatchError
        IntegrityError: what stands in its place is no file.
        VerityMissingError: the repository is secure and the object is not protected.
    """
    object_id.require(state.algorithm)
    try:
        # What stands there may be anything, and opening a pipe would wait.
        fd = state.open_object_file(object_id.path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ObjectNotFoundError(object_id.hex()) from None
    except OSError as error:
        if _is_link(state, object_id, error):
            raise IntegrityError(f"object {object_id.hex()} is a symbolic link") from None
        files.place(error, _objects_path(state))
        raise
    try:
        with files.naming_descriptor(fd):
            is_regular = stat.S_ISREG(os.fstat(fd).st_mode)
        if not is_regular:
            raise IntegrityError(f"object {object_id.hex()} is no regular file")
        check_measure(state, fd, object_id)
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_measure(state: RepoState, fd: int, object_id: ObjectId) -> None:
    """Refuse a file that the kernel guards under another digest, or in a secure repository not at all."""
    what = f"object {object_id.hex()}"
    try:
        found = verity.measure(fd, state.algorithm, what)
    except (VerityMissingError, VerityNotSupportedError):
        if state.is_guarded(object_id):
            raise VerityMissingError(what) from None
        return
    if found != object_id:
        raise DigestMismatchError(what, object_id.hex(), found.hex())


def read_object(state: RepoState, object_id: ObjectId, *, max_size: int | None = None) -> bytes:
    """The whole content, checked: by the kernel in a secure repository, otherwise by its digest here.

    Raises:
        IntegrityError: it has more than *max_size* bytes, or is corrupt.
    """
    fd = open_object(state, object_id)
    with object_errors(state), open(fd, "rb", buffering=0) as file:
        size = os.fstat(fd).st_size
        if max_size is not None and size > max_size:
            raise IntegrityError(f"object {object_id.hex()} has {size} bytes, more than the {max_size} allowed")
        content = file.read()
    if not state.is_guarded(object_id) and (found := fsverity.digest(content, state.algorithm)) != object_id:
        raise DigestMismatchError(f"object {object_id.hex()}", object_id.hex(), found.hex())
    return content


# -- helpers -----------------------------------------------------------------------------------


def _digest_file(fd: int, state: RepoState) -> ObjectId:
    hasher = fsverity.Hasher(state.algorithm)
    offset = 0
    while piece := os.pread(fd, _READ_SIZE, offset):
        hasher.update(piece)
        offset += len(piece)
    return hasher.id()


def is_intact(state: RepoState, object_id: ObjectId, size: int) -> bool:
    """Whether the object is in place: of the right size, and in a secure repository measured."""
    try:
        with state.opened_object_file(object_id.path, os.O_PATH) as fd:
            status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            return False
        if state.secure:
            with state.opened_object_file(object_id.path, os.O_RDONLY | os.O_NONBLOCK) as fd:
                check_measure(state, fd, object_id)
    except (IntegrityError, AlgorithmMismatchError):
        return False
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        return False
    return True


def _create_in_shard(state: RepoState, path: str) -> files.Tmpfile:
    shard = path[:2]
    try:
        return files.Tmpfile.create(shard, FILE_MODE, dir_fd=state.objects_fd)
    except FileNotFoundError:
        files.make_directory(shard, DIRECTORY_MODE, dir_fd=state.objects_fd)
        return files.Tmpfile.create(shard, FILE_MODE, dir_fd=state.objects_fd)


def _publish(state: RepoState, tmpfile: files.Tmpfile, size: int, object_id: ObjectId, path: str) -> StoreOutcome:
    if state.verity_works is not False:
        _protect(state, tmpfile, object_id)
    try:
        _link(state, tmpfile, path)
    except FileExistsError:
        if is_intact(state, object_id, size):  # another writer was faster
            return StoreOutcome.PRESENT
        tmpfile.replace(path, dir_fd=state.objects_fd)
        return StoreOutcome.REPLACED
    return StoreOutcome.STORED


def _link(state: RepoState, tmpfile: files.Tmpfile, path: str) -> None:
    try:
        tmpfile.link(path, dir_fd=state.objects_fd)
    except FileNotFoundError:
        files.make_directory(path[:2], DIRECTORY_MODE, dir_fd=state.objects_fd)
        tmpfile.link(path, dir_fd=state.objects_fd)


def _protect(state: RepoState, tmpfile: files.Tmpfile, object_id: ObjectId) -> None:
    """Enable fs-verity on the file, where the file system can."""
    try:
        tmpfile.make_read_only()
    except FileNotFoundError:  # without /proc no file can be opened again
        if state.secure:
            raise
        state.verity_works = False
        return
    try:
        verity.enable(tmpfile.fd, state.algorithm, f"object {object_id.hex()}")
    except VerityNotSupportedError:
        if state.secure:
            raise
        state.verity_works = False
    else:
        check_measure(state, tmpfile.fd, object_id)
