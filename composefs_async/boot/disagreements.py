"""Files of a tree to which ``restorecon`` would give another label than the bootable image has.

Owns finding them without a second look at every file.  The two readings of a policy (`policy`) can part only

* at a path that a line names without an expression, as ``semanage fcontext -a`` writes for a single file,
* below an alias that one of them resolves further than the other,
* anywhere, if the policy has both local lines and lines for home directories, or such a path with an escape in it that
  stands for more than one character.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .._log import logger
from ..tree.inodes import Directory
from ..tree.walk import find, walk
from .labels import kind_of_inode
from .policy import SPECIFICATION_FILES, Policy, Specification, has_metacharacters, substituted

__all__ = ["Disagreement", "find_disagreements", "warn_of_disagreements"]

_log = logger("boot")
_escape = re.compile(rb"\\(.)", re.S)


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A file whose label ``restorecon`` would change."""

    path: bytes
    specification: Specification | None
    """The line of the policy that decides about its label in the image; None if no line fits."""
    restorecon: Specification | None
    """The line that ``restorecon`` goes by."""

    @property
    def label(self) -> bytes | None:
        """The label in the image."""
        return _context(self.specification)

    @property
    def restorecon_label(self) -> bytes | None:
        """The label that ``restorecon`` would set; None if it would set none."""
        return _context(self.restorecon)


def find_disagreements(root: Directory, policy: Policy) -> Iterator[Disagreement]:
    """Find the files below *root* that the two readings of *policy* label differently, in no particular order.

    With a policy as distributions ship it this looks at the few files that its lines name one by one.
    """
    literals = _literals(policy.specifications)
    files = {each.file for each in policy.specifications}
    if literals is None or files.issuperset(SPECIFICATION_FILES[1:]):
        yield from _below(root, b"/", policy)
        return
    points, apart = _aliased(root, policy)
    for point in apart:
        yield from _below(root, point, policy)
    for path in _candidates(literals, points):
        inode = find(root, path)
        if inode is None or any(_is_below(path, point) for point in apart):
            continue
        kind = kind_of_inode(inode)
        fitting = [each for each in literals.get(substituted(policy.aliases, path), ()) if each.kind in (None, kind)]
        ours = policy.specification(path, kind)
        if fitting and fitting[-1].context != _context(ours):
            yield Disagreement(path, ours, fitting[-1])


def warn_of_disagreements(root: Directory, policy: Policy) -> None:
    """Log a warning if ``restorecon`` would change a label in the tree, with how many, and one as an example."""
    found = sorted(find_disagreements(root, policy), key=lambda each: each.path)
    if found:
        one = found[0]
        _log.warning(
            "restorecon would change the labels of %d files in this image, such as that of %s from %s (%s) to %s (%s); "
            "'boot labels --restorecon' lists them",
            len(found),
            os.fsdecode(one.path),
            _shown(one.label),
            one.specification or "no line",
            _shown(one.restorecon_label),
            one.restorecon or "no line",
        )


def _context(specification: Specification | None) -> bytes | None:
    return None if specification is None else specification.context


def _shown(label: bytes | None) -> str:
    return "none" if label is None else os.fsdecode(label)


def _below(root: Directory, top: bytes, policy: Policy) -> Iterator[Disagreement]:
    """Compare both readings for *top* and everything below it."""
    inode = find(root, top)
    if inode is None:
        return
    inside = walk(inode) if isinstance(inode, Directory) else iter([(b"/", inode)])
    for path, found in inside:
        whole = (top.rstrip(b"/") + path).rstrip(b"/") or b"/"
        differing = policy.disagreement(whole, kind_of_inode(found))
        if differing:
            yield Disagreement(whole, *differing)


def _literals(specifications: Iterable[Specification]) -> dict[bytes, list[Specification]] | None:
    """The lines that name one path, by that path; None if one of them has an escape that says more than a character."""
    found: dict[bytes, list[Specification]] = {}
    for each in specifications:
        if not has_metacharacters(each.regex):
            if any(escaped.isalnum() for escaped in _escape.findall(each.regex)):
                return None
            found.setdefault(_escape.sub(rb"\1", each.regex), []).append(each)
    return found


def _aliased(root: Directory, policy: Policy) -> tuple[dict[bytes, bytes], list[bytes]]:
    """Where in the tree aliases count: what each such path is looked up as by both readings, and where they differ."""
    aliases = {alias for table in policy.aliases for alias in table}
    pending, seen = [*aliases], set(aliases)
    agreed, apart = dict[bytes, bytes](), list[bytes]()
    while pending:
        point = pending.pop()
        if find(root, point) is None:
            continue
        effective = policy.effective(point)
        if effective == substituted(policy.aliases, point):
            agreed[point] = effective
        else:
            apart.append(point)
        further = {point + alias[len(effective) :] for alias in aliases if alias.startswith(effective + b"/")} - seen
        seen |= further
        pending += further
    return agreed, [point for point in apart if not any(_is_below(point, other) for other in apart)]


def _candidates(literals: Iterable[bytes], points: dict[bytes, bytes]) -> set[bytes]:
    """The paths in the tree that may be looked up as one of *literals*."""
    return {
        *literals,
        *(
            point + path[len(effective) :]
            for point, effective in points.items()
            for path in literals
            if path == effective or _is_below(path, effective)
        ),
    }


def _is_below(path: bytes, directory: bytes) -> bool:
    return path.startswith(directory + b"/")
