"""Why an image does not have the digest that it should have.

Owns the search for known causes (`causes`).  Does not own the comparison of trees (`compare`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from ...digest import Algorithm, ObjectId
from ...errors import ErofsError
from ...fsverity import digest as fsverity_digest
from ...tree.diff import Change, iter_changes
from ...tree.inodes import Directory
from ..writer import Dialect, build_image
from .causes import AS_COMPOSEFS_RS, CAUSES, Cause

__all__ = ["ATTEMPTS", "Explanation", "explain"]

ATTEMPTS: Final = 400
"""Images built at most, unless the caller says otherwise: enough for every pair of causes on both sides."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What `explain` found."""

    causes: tuple[Cause, ...] | None
    """What makes the images equal, applied together: none if they are equal already; None if nothing tried does."""
    applied_to_other: bool
    """Whether it is the other tree to which the causes must be applied, so that the first one has them already."""
    first: Change | None
    """The first path that differs: between the trees if both are known, otherwise between the tree and what the
    causes make of it; None if no path does."""
    attempts: int
    """Images built."""
    untold: tuple[Cause, ...] = ()
    """If no cause was found and the other tree is unknown: what may have happened to the first one, taking away what
    the other may still have."""

    def __str__(self) -> str:
        place = f"; the first difference is at {_place(self.first)}" if self.first else ""
        if self.causes is None:
            lost = ", or ".join(cause.lost for cause in self.untold)
            alone = f"; whether the image has lost {lost}, only the other one can tell" if lost else ""
            return f"no known cause makes the images equal, of {self.attempts} tried{place}{alone}"
        if not self.causes:
            return "the images are equal"
        side = "in the first image" if self.applied_to_other else "in the second image"
        return f"{side}, {' and '.join(cause.summary for cause in self.causes)}{place}"


def explain(
    tree: Directory,
    expected: ObjectId,
    *,
    version: int = 1,
    other: Directory | None = None,
    other_version: int | None = None,
    dialect: Dialect = Dialect.RUST,
    attempts: int = ATTEMPTS,
    read_as_composefs_rs: Callable[[], Directory | None] | None = None,
) -> Explanation:
    """Find out why the image of *tree* does not have the digest *expected*.

    Blocks: each attempt builds an image, some microseconds for every inode.  Single causes are tried first, then
    pairs; causes that change nothing cost no attempt.

    Args:
        version: of the layout in which *tree* is taken to be written.
        other: the tree behind the other image, if it is known.
        other_version: of the layout of the other image, if it is known.
        dialect: whose rules are taken first; those of the other program are one of the causes.
        attempts: give up after this many images.
        read_as_composefs_rs: makes the tree that composefs-rs has of the layers behind *tree*, None if it refuses
            them.  Asked when nothing else explains the digest, since it reads all layers.
    """
    search = _Search(expected.algorithm, dialect, attempts)
    known = iter_changes(tree, other) if other else None
    first = next(known, None) if known else None
    found = search.run(tree, version, expected)
    if found is not None:
        causes, rewritten = found
        return Explanation(causes, False, first or next(iter_changes(tree, rewritten), None), search.attempts)
    if other is not None:
        own = search.digest(tree, version, dialect)
        back = search.run(other, version if other_version is None else other_version, own) if own else None
        if back is not None:
            return Explanation(back[0], True, first, search.attempts)
    theirs = read_as_composefs_rs() if read_as_composefs_rs else None
    found = search.run(theirs, version, expected) if theirs else None
    if found is not None:
        causes, rewritten = found
        first = first or next(iter_changes(tree, rewritten), None)
        return Explanation((AS_COMPOSEFS_RS, *causes), False, first, search.attempts)
    untold = () if other else tuple(each for each in CAUSES if each.lost and _happened(each, tree, expected.algorithm))
    return Explanation(None, False, first, search.attempts, untold)


def _happened(cause: Cause, tree: Directory, algorithm: Algorithm) -> bool:
    """Whether the tree is as if *cause* had changed it already."""
    return cause.rewrite is not None and cause.rewrite(tree, algorithm) is None


class _Search:
    def __init__(self, algorithm: Algorithm, dialect: Dialect, limit: int) -> None:
        self._algorithm, self._dialect, self._limit = algorithm, dialect, limit
        self.attempts = 0

    def digest(self, tree: Directory, version: int, dialect: Dialect) -> ObjectId | None:
        """The digest of the image of *tree*; None if there is no such image, or there were too many attempts."""
        if self.attempts >= self._limit:
            return None
        self.attempts += 1
        try:
            image = build_image(tree, self._algorithm, version, dialect=dialect)
        except ErofsError:
            return None
        return fsverity_digest(image, self._algorithm)

    def run(self, tree: Directory, version: int, wanted: ObjectId) -> tuple[tuple[Cause, ...], Directory] | None:
        """The first causes that give *tree* an image with the digest *wanted*, and what they make of it."""
        for causes in _candidates(version, self._dialect):
            rewritten = self._apply(causes, tree)
            if rewritten is None:
                continue
            layout = next((cause.version for cause in causes if cause.version is not None), version)
            dialect = next((cause.dialect for cause in causes if cause.dialect is not None), self._dialect)
            if self.digest(rewritten, layout, dialect) == wanted:
                return causes, rewritten
            if self.attempts >= self._limit:
                break
        return None

    def _apply(self, causes: tuple[Cause, ...], tree: Directory) -> Directory | None:
        """None if one of the causes changes nothing, since fewer causes give the same image then."""
        for cause in causes:
            if cause.rewrite is not None:
                rewritten = cause.rewrite(tree, self._algorithm)
                if rewritten is None:
                    return None
                tree = rewritten
        return tree


def _candidates(version: int, dialect: Dialect) -> Iterator[tuple[Cause, ...]]:
    """No cause, single ones, pairs of those that go together."""
    usable = [cause for cause in CAUSES if (cause.version, cause.dialect) not in ((version, None), (None, dialect))]
    for count in range(3):
        for causes in combinations(usable, count):
            if count < 2 or not causes[0].groups & causes[1].groups:
                yield causes


def _place(change: Change) -> str:
    path = change.path.decode(errors="backslashreplace")
    if not change.fields:
        return f"{path} ({change.kind.value})"
    field = change.fields[0]
    return f"{path}, {field.name}: {field.before_text}, {field.after_text}"
