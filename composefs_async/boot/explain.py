"""Why a bootable image has not the digest that a kernel expects.

Owns putting together the search among known ways (`variants`) and the first difference of two trees.  Blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ..digest import ObjectId
from ..tree.diff import Change, ChangeKind, iter_changes
from ..tree.inodes import Directory
from ..tree.transform import XattrFilter
from .labels import ATTRIBUTE, ReadFile, kind_of
from .policy import Policy, Specification
from .transform import make_bootable
from .variants import Variant, find_variant

__all__ = ["BootExplanation", "explain_boot"]

_LABEL: Final = f"xattr {ATTRIBUTE.decode()}"


@dataclass(frozen=True, slots=True)
class BootExplanation:
    """What `explain_boot` found."""

    variant: Variant | None
    """The way that gives the digest; None if none does."""
    differences: tuple[str, ...]
    """What that does otherwise than usual; empty if it is the usual way."""
    first: Change | None
    """If no way gives the digest and the other tree is known: the first path that differs, from the usual one."""
    specification: Specification | None
    """If its label differs: the line of the policy that decides."""
    tried: int
    """Images that were built."""

    def __str__(self) -> str:
        if self.variant is not None:
            return f"{'; '.join(self.differences)} ({self.variant})" if self.differences else "the images are equal"
        text = f"no known cause gives this digest, of {self.tried} tried"
        if self.first is not None:
            text += f"; the first difference is at {_place(self.first)}"
        if self.specification is not None:
            text += f", by {self.specification}"
        return text


def explain_boot(
    make: Callable[[XattrFilter], Directory],
    read: ReadFile,
    expected: ObjectId,
    *,
    usual: Variant | None = None,
    other: Directory | None = None,
) -> BootExplanation:
    """Find out why the bootable image of a tree has not the digest *expected*.

    Args:
        make, read: as for `variants`.
        usual: how the image was thought to be made.
        other: the tree of the image that has the digest, if it is known.

    Raises:
        BootError, PolicyError, and what *make* and *read* do.
    """
    usual = usual or Variant()
    found, tried = find_variant(make, read, expected)
    if found is not None:
        return BootExplanation(found[0], tuple(found[0].differences(usual)), None, None, tried)
    if other is None:
        return BootExplanation(None, (), None, None, tried)
    root = make(usual.xattrs)
    policy = make_bootable(root, read, nanoseconds=usual.nanoseconds)
    first = next(iter_changes(root, other), None)
    specification = _specification(policy, root, first) if first and policy else None
    return BootExplanation(None, (), first, specification, tried)


def _specification(policy: Policy, root: Directory, change: Change) -> Specification | None:
    if change.kind is not ChangeKind.CHANGED or _LABEL not in [field.name for field in change.fields]:
        return None
    kind = kind_of(root, change.path)
    return None if kind is None else policy.specification(change.path, kind)


def _place(change: Change) -> str:
    path = change.path.decode(errors="backslashreplace")
    if not change.fields:
        return f"{path} ({change.kind.value})"
    field = change.fields[0]
    return f"{path}, {field.name}: {field.before_text}, {field.after_text}"
