"""What is done to the tree of an operating system before it becomes the image that a machine boots.

Owns the order: ``/boot`` and ``/sysroot`` are emptied, then labels are made.  Does not own what every image's tree
goes through before (`tree.transform`), nor labels (`labels`).

``/boot`` is emptied so that a kernel image there can hold the digest of the image: the digest does not depend on it.
"""

from __future__ import annotations

from typing import Final, Literal

from ..errors import BootError
from ..tree.inodes import Directory, Symlink
from ..tree.transform import settle_links
from .disagreements import warn_of_disagreements
from .labels import ReadFile, find_policy, label_settled_tree, remove_labels
from .policy import Engine, Policy

__all__ = ["EMPTIED", "Nanoseconds", "make_bootable", "transform_for_boot"]

EMPTIED: Final = (b"boot", b"sysroot")
"""Directories at the top whose content is no part of a bootable image."""

Nanoseconds = Literal["keep", "usr"]
"""Of the times of emptied directories: their own, as in composefs-rs 0.9.0, or those of ``/usr``, as after it."""

_SECOND: Final = 1_000_000_000


def transform_for_boot(
    root: Directory, read: ReadFile, *, nanoseconds: Nanoseconds = "keep", engine: Engine | None = None
) -> Policy | None:
    """Make the tree one that a machine boots, in place; returns the policy by which it was labelled, if it has one.

    A warning is logged if ``restorecon`` on the running machine would change labels (`disagreements`).

    The two directories keep their mode, owner and attributes, and get the time of ``/usr``, of which
    *nanoseconds* says how exact.  Without a policy every label is removed.

    Args:
        read: gives the content of files of the policy that are not in the tree.
        engine: as for `Policy.from_files`.

    Raises:
        BootError: one of ``/usr``, ``/boot`` and ``/sysroot`` is missing, or no directory.
        SELinuxPolicyError: the policy is malformed.
    """
    policy = make_bootable(root, read, nanoseconds=nanoseconds, engine=engine)
    if policy is not None:
        warn_of_disagreements(root, policy)
    return policy


def make_bootable(
    root: Directory, read: ReadFile, *, nanoseconds: Nanoseconds = "keep", engine: Engine | None = None
) -> Policy | None:
    """Do what `transform_for_boot` does, for a tree that nobody is going to boot: without a warning."""
    usr, *emptied = [_directory(root, name) for name in (b"usr", *EMPTIED)]
    for directory in emptied:
        directory.children, directory.links = {}, frozenset()
        directory.mtime_ns = _time(usr.mtime_ns, directory.mtime_ns, nanoseconds)
    settle_links(root)
    policy = find_policy(root, read, engine=engine)
    if policy is None:
        remove_labels(root)
    else:
        label_settled_tree(root, policy)
    return policy


def _time(usr: int, own: int, nanoseconds: Nanoseconds) -> int:
    return usr if nanoseconds == "usr" else usr - usr % _SECOND + own % _SECOND


def _directory(root: Directory, name: bytes) -> Directory:
    found = root.children.get(name)
    if isinstance(found, Directory):
        return found
    where = f"/{name.decode()}"
    if found is None:
        raise BootError(where, "there is no such directory, which a bootable image needs")
    what = "it is a symbolic link" if isinstance(found, Symlink) else "it is no directory"
    raise BootError(where, f"{what}, but a bootable image needs a directory")
