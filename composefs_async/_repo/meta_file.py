"""The file meta.json: reading it, writing it, and what its fs-verity protection says.

Owns how the file comes and stays; what it says is `metadata`'s, who may write it when is for the callers.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from .._sys import files, verity
from .._sys.beneath import opened_beneath
from ..digest import Algorithm
from ..errors import AlgorithmMismatchError, ComposefsError, MetadataError, VerityMissingError, VerityNotSupportedError
from .metadata import MAX_SIZE, Metadata
from .state import FILE_MODE

__all__ = ["NAME", "exists", "read", "write"]

NAME = "meta.json"


def exists(fd: int) -> bool:
    return os.access(NAME, os.F_OK, dir_fd=fd)


def read(fd: int, path: str) -> tuple[Metadata, Algorithm | None]:
    """What it says, and the algorithm that fs-verity guards it with, which makes the repository secure.

    Raises:
        FileNotFoundError: there is none.
        MetadataError: it is no meta.json.
        AlgorithmMismatchError: it is guarded by another algorithm than the one it names.
    """
    what = f"{path}/{NAME}"
    try:
        with files.naming(path), opened_beneath(NAME, os.O_RDONLY | os.O_NONBLOCK, dir_fd=fd) as file:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise MetadataError(what, "it is no regular file")
            content = os.read(file, MAX_SIZE + 1)
            guard = _guard(file, what)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        with files.naming(path):
            os.stat(NAME, dir_fd=fd)  # a link that leads nowhere is none
        raise MetadataError(what, "it is a symbolic link") from None
    metadata = Metadata.decode(content, what)
    if guard is not None and guard is not metadata.algorithm:
        raise AlgorithmMismatchError(f"the fs-verity protection of {what}", metadata.algorithm.value, guard.value)
    return metadata, guard


def _guard(fd: int, what: str) -> Algorithm | None:
    for algorithm in Algorithm:
        with contextlib.suppress(VerityMissingError, VerityNotSupportedError, ComposefsError):
            verity.measure(fd, algorithm, what)
            return algorithm
    return None


def write(fd: int, path: str, metadata: Metadata, *, secure: bool, replace: bool = False) -> bool:
    """Publish a whole meta.json, durably; False if there is one and it is not to be replaced.

    A crash leaves the file that was there, or none, or the new one.

    Raises:
        VerityNotSupportedError: *secure*, and the file system cannot guard the file; nothing has changed.
    """
    tmpfile = files.Tmpfile.create(".", FILE_MODE, dir_fd=fd)
    try:
        files.write_all(tmpfile.fd, metadata.encode())
        os.fsync(tmpfile.fd)
        if secure:
            tmpfile.make_read_only()
            verity.enable(tmpfile.fd, metadata.algorithm, f"{path}/{NAME}")
        try:
            (tmpfile.replace if replace else tmpfile.link)(NAME, dir_fd=fd)
        except FileExistsError:
            return False
        os.fsync(fd)
    finally:
        tmpfile.discard()
    return True
