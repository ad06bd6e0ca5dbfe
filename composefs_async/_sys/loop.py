"""Loop devices: a file as a read-only block device, for kernels that mount no image from a file.

Source: linux/loop.h, loop(4).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from typing import Final

from ..errors import MountError
from .files import opened

__all__ = ["loop_device"]

_GET_FREE: Final = 0x4C82  # LOOP_CTL_GET_FREE
_CONFIGURE: Final = 0x4C0A  # LOOP_CONFIGURE, Linux 5.8
_READ_ONLY: Final = 1  # LO_FLAGS_READ_ONLY
_AUTOCLEAR: Final = 4  # LO_FLAGS_AUTOCLEAR
_BLOCK_SIZE: Final = 4096
# struct loop_config: fd, block_size; struct loop_info64 (232 bytes) of which we set lo_flags; reserved[8].
_CONFIG: Final = struct.Struct("=II 52x I 176x 64x")
_ATTEMPTS: Final = 64
"""Somebody else may take the free device first, and in the worst case does so every time."""


@contextlib.contextmanager
def loop_device(image: int, what: str) -> Iterator[str]:
    """The path of a device with the content of the open file *image*, for the time of the block.

    What has been mounted from it within the block keeps it; otherwise it is free again afterwards.

    Raises:
        MountError: there are no loop devices, or all are taken.
    """
    fd, path = _attach(image, what)
    try:
        yield path
    finally:
        os.close(fd)


def _attach(image: int, what: str) -> tuple[int, str]:
    argument = _CONFIG.pack(image, _BLOCK_SIZE, _READ_ONLY | _AUTOCLEAR)
    try:
        with opened("/dev/loop-control", os.O_RDWR) as control:
            for _ in range(_ATTEMPTS):
                path = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
                if (fd := _configure(path, argument)) is not None:
                    return fd, path
    except OSError as error:
        raise MountError(error.errno or errno.EIO, what, f"no loop device: {error.filename or ''}") from None
    raise MountError(errno.EBUSY, what, "other processes took every free loop device")


def _configure(path: str, argument: bytes) -> int | None:
    """The open device; None if somebody else has taken it."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _CONFIGURE, argument)
    except OSError as error:
        os.close(fd)
        if error.errno == errno.EBUSY:
            return None
        error.filename = path
        raise
    return fd
