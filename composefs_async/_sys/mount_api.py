"""The mount system calls of Linux 5.2 and later, and what the kernel says when it refuses.

Owns numbers, constants and the log of a file system context.  Does not own what is mounted how (`mount`).

Source: linux/mount.h, asm-generic/unistd.h, fsopen(2), fsconfig(2), fsmount(2), move_mount(2), mount_setattr(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from types import TracebackType
from typing import Any, Final, Self

from ..errors import MountError

__all__ = [
    "MOUNT_ATTR_RDONLY",
    "Context",
    "idmap",
    "move_mount",
    "unmount",
]

# asm-generic/unistd.h; the numbers of new calls are the same everywhere but on Alpha, which counts 110 further.
_SHIFT: Final = 110 if platform.machine() == "alpha" else 0
_MOVE_MOUNT: Final = 429 + _SHIFT
_FSOPEN: Final = 430 + _SHIFT
_FSCONFIG: Final = 431 + _SHIFT
_FSMOUNT: Final = 432 + _SHIFT
_MOUNT_SETATTR: Final = 442 + _SHIFT

# linux/mount.h
_FSOPEN_CLOEXEC: Final = 1
_FSMOUNT_CLOEXEC: Final = 1
_FSCONFIG_SET_FLAG: Final = 0
_FSCONFIG_SET_STRING: Final = 1
_FSCONFIG_SET_FD: Final = 5
_FSCONFIG_CMD_CREATE: Final = 6
_MOVE_MOUNT_F_EMPTY_PATH: Final = 0x04
_MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
_MOUNT_ATTR_IDMAP: Final = 0x00100000
MOUNT_ATTR_RDONLY: Final = 0x1
_MOUNT_ATTR: Final = struct.Struct("=QQQQ")  # struct mount_attr: attr_set, attr_clr, propagation, userns_fd

_AT_EMPTY_PATH: Final = 0x1000  # linux/fcntl.h
_MNT_DETACH: Final = 2  # linux/fs.h, umount(2)
_UMOUNT_NOFOLLOW: Final = 8

_STRING_MAX: Final = 255  # fs/fsopen.c: strings of 256 bytes and their NUL do not fit
_LOG_READ: Final = 8192
_LOG_MESSAGES: Final = 64  # more than the eight that the kernel keeps (include/linux/fs_context.h, struct fc_log)

_ADVICE: Final = {
    errno.EPERM: "mounting needs the capability CAP_SYS_ADMIN",
    errno.ENOSYS: "the kernel has no fsopen, which came with Linux 5.2",
    errno.ENODEV: "the kernel does not know this kind of file system",
}

_IDMAP_ADVICE: Final = {
    errno.EINVAL: "the descriptor is of no user namespace, or the file system has no maps of owners",
    errno.EPERM: "the user namespace must not be that of the file system, and CAP_SYS_ADMIN is needed",
}
_UNMOUNT_ADVICE: Final = {
    errno.EINVAL: "nothing is mounted there",
    errno.EBUSY: "something still uses it, which a lazy unmount does not mind",
    errno.EPERM: "it needs the capability CAP_SYS_ADMIN",
}

_libc = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: int | bytes | None) -> int:
    """A system call; raises OSError without a file name."""
    converted = [ctypes.c_long(value) if isinstance(value, int) else ctypes.c_char_p(value) for value in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *converted)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def refused(error: OSError, what: str, log: str = "") -> MountError:
    """The error for *what* after the system call failed with *error*."""
    code = error.errno or errno.EIO
    return MountError(code, what, log or _ADVICE.get(code, ""))


class Context:
    """A file system that is being configured (fsopen(2)); leaving the ``with`` block closes it.

    All methods raise MountError, with the kernel's own words if it said any.
    """

    def __init__(self, kind: str, what: str) -> None:
        """Begin to configure a file system of *kind*; *what* stands in errors."""
        self._what = what
        try:
            self._fd = _call(_FSOPEN, kind.encode(), _FSOPEN_CLOEXEC)
        except OSError as error:
            raise refused(error, what) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def set_flag(self, key: str) -> None:
        self._config(_FSCONFIG_SET_FLAG, key, None, 0)

    def set_string(self, key: str, value: str) -> None:
        self._config(_FSCONFIG_SET_STRING, key, os.fsencode(value), 0)

    def set_source(self, source: str) -> None:
        """What the mount table calls the source; cut where the kernel would refuse it for its length."""
        self._config(_FSCONFIG_SET_STRING, "source", os.fsencode(source)[:_STRING_MAX], 0)

    def set_fd(self, key: str, fd: int) -> None:
        self._config(_FSCONFIG_SET_FD, key, None, fd)

    def create(self) -> None:
        """Make the superblock of what was configured."""
        self._config(_FSCONFIG_CMD_CREATE, None, None, 0)

    def mount(self, attributes: int) -> int:
        """A mount of it that is attached nowhere; the caller closes the descriptor, which drops the mount."""
        try:
            return _call(_FSMOUNT, self._fd, _FSMOUNT_CLOEXEC, attributes)
        except OSError as error:
            raise refused(error, self._what, self._log()) from None

    def _config(self, command: int, key: str | None, value: bytes | None, extra: int) -> None:
        try:
            _call(_FSCONFIG, self._fd, command, key.encode() if key else None, value, extra)
        except OSError as error:
            raise refused(error, self._what, self._log()) from None

    def _log(self) -> str:
        """What the kernel has to say, one message for each read (fsopen(2)); reading empties it."""
        messages: list[str] = []
        for _ in range(_LOG_MESSAGES):
            try:
                message = os.read(self._fd, _LOG_READ)
            except OSError:  # ENODATA: no more
                break
            if not message:
                break
            # "e ", "w " or "i " says how bad it is.
            messages.append(message.decode("utf-8", "backslashreplace")[2:].strip())
        return "; ".join(messages)


def move_mount(mount: int, target: int, what: str) -> None:
    """Attach the detached *mount* at the open *target*; the mount lives on when *mount* is closed.

    Raises:
        MountError
    """
    try:
        _call(_MOVE_MOUNT, mount, b"", target, b"", _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH)
    except OSError as error:
        raise refused(error, what) from None


def idmap(mount: int, user_namespace: int, what: str) -> None:
    """Map owners of the detached *mount* as the user namespace behind the descriptor does (mount_setattr(2)).

    Raises:
        MountError
    """
    attributes = _MOUNT_ATTR.pack(_MOUNT_ATTR_IDMAP, 0, 0, user_namespace)
    try:
        _call(_MOUNT_SETATTR, mount, b"", _AT_EMPTY_PATH, attributes, len(attributes))
    except OSError as error:
        raise refused(error, what, _IDMAP_ADVICE.get(error.errno or 0, "")) from None


def unmount(path: str, *, lazy: bool = False) -> None:
    """Remove the mount at *path*, which is not followed if it is a symbolic link (umount2(2)).

    Args:
        lazy: out of sight at once; gone when nobody uses it any more.

    Raises:
        MountError: it is in use, or nothing is mounted there.
    """
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
    function: Any = _libc.umount2
    if function(os.fsencode(path), flags):
        code = ctypes.get_errno()
        raise MountError(code, path, _UNMOUNT_ADVICE.get(code, ""), "unmounting")
