"""What mounts without privileges need, found out by trying; leaves nothing behind.

Owns the questions, each asked in a process of its own that ends at once.  Does not own the mounts (`userxattr`).
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ..tree.inodes import Directory, InlineFile
from . import namespaces, userxattr
from .files import opened
from .namespaces import IdMap

__all__ = ["RootlessAbilities", "probe_rootless"]

_FUSE: Final = "/dev/fuse"


@dataclass(frozen=True, slots=True)
class RootlessAbilities:
    """What this process may do without root, on this system."""

    user_namespaces: bool
    """It may make namespaces of users and mounts."""
    ids: bool
    """More than its own user exists inside: subuid(5), newuidmap(1)."""
    tmpfs_xattrs: bool
    """Files in a tmpfs can have attributes of users (Linux 6.6)."""
    userxattr_data: bool
    """overlayfs takes content from objects in a namespace (Linux 6.16)."""
    fuse: bool
    """The device of FUSE can be opened."""

    @property
    def rootless(self) -> bool:
        """Whether an image can be mounted without root and without FUSE."""
        return self.user_namespaces and self.tmpfs_xattrs and self.userxattr_data


def probe_rootless() -> RootlessAbilities:
    """Try everything.  Blocks for some milliseconds; starts short-lived processes."""
    inside = _succeeds(_enter)
    return RootlessAbilities(
        user_namespaces=inside,
        ids=inside and not namespaces.subordinate_ids().is_single,
        tmpfs_xattrs=inside and _succeeds(_try_tmpfs),
        userxattr_data=inside and _succeeds(_try_overlay),
        fuse=_opens(_FUSE),
    )


def _opens(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _own() -> IdMap:
    return IdMap(((0, os.geteuid(), 1),), ((0, os.getegid(), 1),))


def _enter() -> None:
    namespaces.enter_namespaces(_own())


def _try_tmpfs() -> None:
    namespaces.enter_namespaces(_own())
    marked = InlineFile(0o100644, 1, 0, 0, 0, ((b"user.composefs", b"x"),), b"")
    userxattr.fill(Directory(0o40755, 2, 0, 0, 0, children={b"file": marked}), _empty(), _own())


def _try_overlay() -> None:
    namespaces.enter_namespaces(_own())
    with tempfile.TemporaryDirectory(prefix="composefs-") as place, opened(place, os.O_PATH | os.O_DIRECTORY) as data:
        os.close(userxattr.mount_overlay(_empty(), data, "probe", verity=False))


def _empty() -> int:
    return userxattr.mount_metadata("probe")


def _succeeds(work: Callable[[], None]) -> bool:
    """Whether *work* raises nothing in a process of its own."""
    with warnings.catch_warnings():
        # The child does nothing that a lock of another thread could keep it from.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0
