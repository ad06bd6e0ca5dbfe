"""Which way of making a bootable image gives a digest that is expected.

Owns what programs and their versions do differently to such trees, and the search among it.  Does not own what they do
differently to every tree (`erofs.causes`), nor where trees come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from .. import fsverity
from ..digest import Algorithm, ObjectId
from ..erofs.explain.causes import CAUSES, Cause
from ..erofs.writer import build_image
from ..errors import ErofsError
from ..tree.inodes import Directory
from ..tree.transform import XattrFilter
from .disagreements import find_disagreements
from .labels import ReadFile, label_tree, remove_labels
from .transform import EMPTIED, Nanoseconds, make_bootable

__all__ = ["KEPT_MODES", "Labels", "Variant", "find_variant", "variants"]

Labels = Literal["policy", "libselinux", "none"]
"""By the policy, as ``restorecon`` would make them, or none."""

KEPT_MODES: Final = (XattrFilter.ALLOWLIST_ONLY, XattrFilter.KEEP_USER_XATTRS)
"""The choices of attributes under which images are kept."""

_BEFORE: Final = ("implicit-like-parents", "implicit-by-default", "nanoseconds-dropped", "times-zero", "links-broken")
"""Of `CAUSES`, what may have happened to a tree before it was transformed; the others are choices of their own."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way of making the image."""

    xattrs: XattrFilter = XattrFilter.ALLOWLIST_ONLY
    version: int = 1
    """Version of the layout."""
    nanoseconds: Nanoseconds = "keep"
    cause: Cause | None = None
    """What else was different where the image was made."""
    labels: Labels = "policy"

    def __str__(self) -> str:
        """The choices as composefs-rs prints them, and what only we try."""
        more = f", cause={self.cause.name}" if self.cause else ""
        more += "" if self.labels == "policy" else f", labels={self.labels}"
        more += "" if self.nanoseconds == "keep" else f", nanoseconds={self.nanoseconds}"
        return f"xattr-mode={self.xattrs.value}, format-version=V{self.version}{more}"

    def differences(self, usual: Variant) -> list[str]:
        """What it does otherwise than *usual*, each as the end of "it may be that …"."""
        found = []
        if self.xattrs is not usual.xattrs:
            found.append(f"attributes were filtered by {self.xattrs.value}, not {usual.xattrs.value}")
        if self.version != usual.version:
            found.append(f"the image has layout {self.version}, not {usual.version}")
        if self.nanoseconds != usual.nanoseconds:
            names = " and ".join(f"/{name.decode()}" for name in EMPTIED)
            how = "took" if self.nanoseconds == "usr" else "kept their own instead of"
            found.append(f"the times of {names} {how} the nanoseconds of /usr")
        if self.labels != usual.labels:
            what = "were not made" if self.labels == "none" else "were made by setfiles or restorecon"
            found.append(f"labels {what}")
        return found + ([self.cause.summary] if self.cause and self.cause != usual.cause else [])


def variants(
    make: Callable[[XattrFilter], Directory], read: ReadFile, *, kept_only: bool = False
) -> Iterator[tuple[Variant, Directory]]:
    """Every way, the likely ones first, with its tree; those that make the same tree as an earlier one are left out.

    Args:
        make: a new tree with these attributes, transformed as every image's is (`transform_for_oci`).
        read: gives content of the policy's files.
        kept_only: only the attributes under which images are kept (`KEPT_MODES`).

    Raises:
        BootError, PolicyError, and what *make* and *read* do.
    """
    causes: list[Cause | None] = [None, *(cause for cause in CAUSES if cause.name in _BEFORE)]
    modes = KEPT_MODES if kept_only else (*KEPT_MODES, XattrFilter.NONE)
    for cause in causes:
        for labels in ("policy", "libselinux", "none") if cause is None else ("policy",):
            for nanoseconds in ("keep", "usr"):
                for xattrs in modes:
                    root = _made(make(xattrs), read, cause, nanoseconds, labels)
                    if root is not None:
                        for version in (1, 2, 0):
                            yield Variant(xattrs, version, nanoseconds, cause, labels), root


def find_variant(
    make: Callable[[XattrFilter], Directory],
    read: ReadFile,
    expected: ObjectId,
    *,
    kept_only: bool = False,
) -> tuple[tuple[Variant, bytes] | None, int]:
    """The first way whose image has the digest *expected*, with the image; and how many were tried.  Blocks.

    Each try builds an image, some microseconds for every inode.
    """
    tried = 0
    seen: set[ObjectId] = set()
    for variant, root in variants(make, read, kept_only=kept_only):
        try:
            image = build_image(root, expected.algorithm, variant.version)
        except ErofsError:
            continue
        found = fsverity.digest(image, expected.algorithm)
        if found in seen:
            continue
        seen.add(found)
        tried += 1
        if found == expected:
            return (variant, image), tried
    return None, tried


def _made(
    root: Directory, read: ReadFile, cause: Cause | None, nanoseconds: Nanoseconds, labels: Labels
) -> Directory | None:
    """The tree made that way; None if it is the same as with one choice less."""
    if cause is not None and cause.rewrite is not None:
        changed = cause.rewrite(root, Algorithm.SHA512)  # none of these looks at content
        if changed is None:
            return None
        root = changed
    if nanoseconds == "usr" and _same_nanoseconds(root):
        return None
    policy = make_bootable(root, read, nanoseconds=nanoseconds)
    if labels != "policy":
        if policy is None:
            return None
        if labels == "none":
            remove_labels(root)
        elif next(find_disagreements(root, policy), None) is None:
            return None
        else:
            label_tree(root, policy.as_libselinux())
    return root


def _same_nanoseconds(root: Directory) -> bool:
    """Whether the directories that are emptied have those of ``/usr``, so that both choices are one."""
    found = (root.children.get(name) for name in (b"usr", *EMPTIED))
    return len({inode.mtime_ns % 1_000_000_000 for inode in found if inode is not None}) == 1
