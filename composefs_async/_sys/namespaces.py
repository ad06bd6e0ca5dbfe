"""Namespaces of users and mounts, entered by a process without privileges.

Owns entering them, and whose ids exist inside.  Does not own what is mounted there (`userxattr`).

Source: unshare(2), user_namespaces(7), newuidmap(1), subuid(5).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pwd
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ..errors import MountError

__all__ = ["IdMap", "enter_namespaces", "subordinate_ids"]

_CLONE_NEWNS: Final = 0x00020000  # linux/sched.h
_CLONE_NEWUSER: Final = 0x10000000
_PR_SET_DUMPABLE: Final = 4  # linux/prctl.h
_ALL_IDS: Final = 0xFFFFFFFF  # but for the last, which means none
_SETUID_CAPABILITY: Final = 7  # linux/capability.h, CAP_SETUID

_libc = ctypes.CDLL(None, use_errno=True)

_ADVICE: Final = {
    errno.EPERM: "this system lets nobody without privileges make user namespaces (sysctl "
    "kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns, or a container's seccomp filter)",
    errno.ENOSPC: "no more user namespaces may be made (sysctl user.max_user_namespaces)",
    errno.EUSERS: "user namespaces are nested too deeply",
    errno.EINVAL: "a process with several threads cannot enter a user namespace",
    errno.ENOSYS: "the kernel has no user namespaces",
}


@dataclass(frozen=True, slots=True)
class IdMap:
    """Which ids of users and groups exist inside; each entry is the first inside, the first outside, and how many."""

    users: tuple[tuple[int, int, int], ...]
    groups: tuple[tuple[int, int, int], ...]

    @property
    def is_single(self) -> bool:
        """Whether there is one user alone, root inside."""
        return sum(count for _, _, count in self.users) == 1


def subordinate_ids() -> IdMap:
    """The best map for the calling process: all ids for root, those of subuid(5) where there are some, or its own."""
    user, group = os.geteuid(), os.getegid()
    if _may_map_all():
        return IdMap(((0, 0, _ALL_IDS),), ((0, 0, _ALL_IDS),))
    own = ((0, user, 1),), ((0, group, 1),)
    if not (shutil.which("newuidmap") and shutil.which("newgidmap")):
        return IdMap(*own)
    more = [_ranges(path, user) for path in ("/etc/subuid", "/etc/subgid")]
    if not all(more):
        return IdMap(*own)
    return IdMap(own[0] + more[0], own[1] + more[1])


def _may_map_all() -> bool:
    """Whether this process is root of a namespace with all ids, and may give them on."""
    with contextlib.suppress(OSError, ValueError):
        with open("/proc/self/uid_map") as file:
            mapped = [tuple(map(int, line.split())) for line in file]
        with open("/proc/self/status") as file:
            effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff"))
        return mapped == [(0, 0, _ALL_IDS)] and bool(effective >> _SETUID_CAPABILITY & 1) and os.geteuid() == 0
    return False


def _ranges(path: str, user: int) -> tuple[tuple[int, int, int], ...]:
    names = {str(user)}
    with contextlib.suppress(KeyError):
        names.add(pwd.getpwuid(user).pw_name)
    found: list[tuple[int, int, int]] = []
    with contextlib.suppress(OSError), open(path) as file:
        for line in file:
            fields = line.strip().split(":")
            if len(fields) == 3 and fields[0] in names and fields[1].isdigit() and fields[2].isdigit():
                inside = 1 + sum(count for _, _, count in found)
                found.append((inside, int(fields[1]), int(fields[2])))
    return tuple(each for each in found if each[2] > 0)


def enter_namespaces(ids: IdMap | None = None) -> IdMap:
    """Move the calling process, which must have one thread, into a new namespace of users and one of mounts.

    It is root inside, with every capability there, and without any outside; what it mounts nobody else sees.

    Args:
        ids: `subordinate_ids` by default; where they are refused, the own user alone.

    Returns:
        The ids that exist inside.

    Raises:
        MountError: the system does not allow it, with what would help.
    """
    ids = subordinate_ids() if ids is None else ids
    own = IdMap(((0, os.geteuid(), 1),), ((0, os.getegid(), 1),))
    if ids.is_single:
        _unshare()
        _write_own(own)
        return own
    with _helper(ids) as (release, outcome):
        _unshare()
        os.write(release, b"x")
        if os.read(outcome, 1) == b"0":
            os.setgroups([])
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            return ids
    _write_own(own)
    return own


def _unshare() -> None:
    if _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS):
        code = ctypes.get_errno()
        raise MountError(code, "user namespace", _ADVICE.get(code, ""), "making")
    # Whoever was another user before has files in /proc that belong to root.
    _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def _write_own(ids: IdMap) -> None:
    try:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", _text(ids.users))
        _write("/proc/self/gid_map", _text(ids.groups))
    except OSError as error:
        raise MountError(error.errno or errno.EPERM, "user namespace", "its ids cannot be mapped", "making") from error


def _text(entries: tuple[tuple[int, int, int], ...]) -> str:
    return "\n".join(" ".join(map(str, entry)) for entry in entries)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


@contextlib.contextmanager
def _helper(ids: IdMap) -> Iterator[tuple[int, int]]:
    """A process outside of the namespace that maps *ids* when a byte comes, and then says ``0`` or ``1``."""
    (waiting, release), (outcome, saying) = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
    target = os.getpid()
    child = os.fork()
    if child == 0:
        code = b"1"
        try:
            os.close(release)
            if os.read(waiting, 1):
                code = b"0" if _map(target, ids) else b"1"
            os.write(saying, code)
        finally:
            os._exit(0)
    os.close(waiting)
    os.close(saying)
    try:
        yield release, outcome
    finally:
        os.close(release)
        os.close(outcome)
        os.waitpid(child, 0)


def _map(target: int, ids: IdMap) -> bool:
    if ids.users == ((0, 0, _ALL_IDS),):
        try:
            _write(f"/proc/{target}/uid_map", _text(ids.users))
            _write(f"/proc/{target}/gid_map", _text(ids.groups))
        except OSError:
            return False
        return True
    for program, entries in (("newuidmap", ids.users), ("newgidmap", ids.groups)):
        arguments = [program, str(target), *(str(number) for entry in entries for number in entry)]
        if os.waitstatus_to_exitcode(os.waitpid(os.posix_spawnp(program, arguments, {"PATH": _PATH}), 0)[1]):
            return False
    return True


_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
