"""The two ioctls of fs-verity.

Source: linux/fsverity.h, Documentation/filesystems/fsverity.rst.
"""

from __future__ import annotations

import errno
import fcntl
import struct
import time

from ..digest import BLOCK_SIZE, Algorithm, ObjectId
from ..errors import AlgorithmMismatchError, VerityMissingError, VerityNotSupportedError
from .files import path_of, uninterrupted

__all__ = ["enable", "measure"]

_ENABLE = 0x40806685  # FS_IOC_ENABLE_VERITY: _IOW('f', 133, struct fsverity_enable_arg)
_MEASURE = 0xC0046686  # FS_IOC_MEASURE_VERITY: _IOWR('f', 134, struct fsverity_digest)
_ENABLE_ARG = struct.Struct("=IIIIQIIQ88x")  # version, algorithm, block size, salt and signature (none)
_DIGEST = struct.Struct("=HH64s")  # algorithm, size, digest

_UNSUPPORTED = (errno.ENOTTY, errno.EOPNOTSUPP)
_BUSY_WAITS = (0.001, 0.001, 0.004, 0.016, 0.064, 0.128)
"""Seconds between tries while a child that another thread forked still holds a writable descriptor."""


def enable(fd: int, algorithm: Algorithm, what: str) -> None:
    """Protect the file behind the read-only *fd*; already protected is fine.

    Nobody may hold it open for writing.  Blocks for a read of the whole file.

    Raises:
        VerityNotSupportedError: the file system cannot do it.
    """
    argument = _ENABLE_ARG.pack(1, algorithm.number, BLOCK_SIZE, 0, 0, 0, 0, 0)
    for wait in (*_BUSY_WAITS, None):
        try:
            uninterrupted(fcntl.ioctl, fd, _ENABLE, argument)
        except OSError as error:
            if error.errno == errno.ETXTBSY and wait is not None:
                time.sleep(wait)
                continue
            if error.errno in _UNSUPPORTED:
                raise VerityNotSupportedError(what) from None
            if error.errno != errno.EEXIST:
                error.filename = path_of(fd) or what
                raise
        return


def measure(fd: int, algorithm: Algorithm, what: str) -> ObjectId:
    """The digest that the kernel guards the file behind *fd* with.

    Raises:
        VerityMissingError: the file is not protected.
        VerityNotSupportedError: the file system cannot do it.
        AlgorithmMismatchError: it is protected with another algorithm.
    """
    buffer = bytearray(_DIGEST.pack(0, 64, b""))
    try:
        uninterrupted(fcntl.ioctl, fd, _MEASURE, buffer)
    except OSError as error:
        if error.errno == errno.ENODATA:
            raise VerityMissingError(what) from None
        if error.errno in _UNSUPPORTED:
            raise VerityNotSupportedError(what) from None
        error.filename = path_of(fd) or what
        raise
    number, size, digest = _DIGEST.unpack(buffer)
    if number != algorithm.number or size != algorithm.digest_size:
        names = {known.number: known.value for known in Algorithm}
        raise AlgorithmMismatchError(what, algorithm.value, names.get(number, f"algorithm {number}"))
    return ObjectId(digest[:size])
