"""Which of thousands of regular expressions match a path: the last one wins.

Owns the search, in two forms that give the same answers: `Re2Matcher`, one automaton for all (package ``google-re2``,
extra ``boot``), and `PythonMatcher`, which keeps for each directory what can still match below it.  Does not own
reading expressions (`regex`), nor what a match means (`policy`).

A path is followed by one byte for the type of the file, as composefs-rs does it, so that ``$`` and ``\\b`` at the end
of an expression mean the same.  Expressions that need backtracking can take time exponential in the length of a path;
with RE2 these are only those with look-around or references to groups.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from .regex import BELOW, LITERAL, SUBTREE, Expression

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["KINDS", "Matcher", "PythonMatcher", "Re2Matcher", "Rule", "matcher_for", "re2_module"]

KINDS: Final = b"-dlcbps"
"""Types of files: regular, directory, symbolic link, character and block device, pipe, socket (selabel_file(5))."""

_TAILS: Final = [bytes([kind]) for kind in range(256)]
_FRAMES_MAX: Final = 1 << 14
_RE2_MEMORY: Final = 256 << 20

Rule = tuple[Expression, int | None]
"""An expression, and the only type of files that it is for."""


class Matcher(Protocol):
    """Finds the rule that decides."""

    def find(self, path: bytes, kind: int) -> int:
        """The index of the last rule that matches *path*, a file of type *kind*; -1 if none does."""
        ...

    def inside(self, directory: bytes) -> Callable[[bytes, int], int]:
        """A faster `find` for paths that are *directory*, a slash and a name."""
        ...


def compiled(expression: Expression, kind: int | None) -> Callable[[bytes], object]:
    """A function that tells whether the expression matches a path with its type behind it.

    Raises:
        re.error: Python cannot compile it.
    """
    dot_all = re.DOTALL if expression.re2 is not None else 0
    end = b"(?s:.)" if kind is None else re.escape(bytes([kind]))
    return re.compile(b"(?:%b)%b" % (expression.pattern, end), dot_all).fullmatch


def re2_module() -> ModuleType | None:
    """The package ``google-re2``, if it is installed."""
    try:
        return importlib.import_module("re2")
    except ImportError:
        return None


def matcher_for(rules: Sequence[Rule], *, engine: str | None = None) -> Matcher:
    """The faster matcher that is there, or the one that *engine*, ``re2`` or ``python``, asks for."""
    module = None if engine == "python" else re2_module()
    if module is None and engine == "re2":
        raise ImportError("the package google-re2 is not installed; composefs-async[boot] has it")
    return PythonMatcher(rules) if module is None else Re2Matcher(rules, module)


# -- one automaton -----------------------------------------------------------------------------


class Re2Matcher:
    """All expressions in one automaton; those that it cannot have are tried one by one."""

    def __init__(self, rules: Sequence[Rule], re2: ModuleType) -> None:
        options = re2.Options()
        options.encoding = re2.Options.Encoding.LATIN1
        options.dot_nl, options.never_capture, options.log_errors = True, True, False
        options.max_mem = _RE2_MEMORY
        found = re2.Set.FullMatchSet(options)
        self._indexes: list[int] = []
        self._single: list[tuple[int, Callable[[bytes], object]]] = []
        for index, (expression, kind) in enumerate(rules):
            if expression.re2 is not None:
                try:
                    found.Add(b"(?:%b)%b" % (expression.re2, b"." if kind is None else re.escape(bytes([kind]))))
                except re2.error:
                    pass
                else:
                    self._indexes.append(index)
                    continue
            self._single.append((index, compiled(expression, kind)))
        self._single.reverse()
        found.Compile()
        # The wrapper around the compiled set costs as much again as half of a match.
        match: Callable[[bytes], list[int]] = getattr(found, "_set", found).Match
        self._rules = rules
        self._fallback: PythonMatcher | None = None
        self.find: Callable[[bytes, int], int] = self._make_find(match if self._indexes else lambda _: [])

    def inside(self, directory: bytes) -> Callable[[bytes, int], int]:
        """A matcher for the paths in a directory, as `Matcher.inside` has it; one automaton serves all directories."""
        return self.find

    def _make_find(self, match: Callable[[bytes], list[int]]) -> Callable[[bytes, int], int]:
        indexes, tails, confirmed, single = self._indexes, _TAILS, self._confirmed, self._single

        def find(path: bytes, kind: int) -> int:
            found = match(path + tails[kind])
            return indexes[max(found)] if found else confirmed(path, kind)

        def find_with_others(path: bytes, kind: int) -> int:
            subject = path + tails[kind]
            found = match(subject)
            if not found:
                return confirmed(path, kind)
            best = indexes[max(found)]
            for index, matches in single:
                if index < best:
                    break
                if matches(subject):
                    return index
            return best

        return find_with_others if single else find

    def _confirmed(self, path: bytes, kind: int) -> int:
        """The rule for what the automaton knows none for, which it also says when its memory is used up."""
        if self._fallback is None:
            self._fallback = PythonMatcher(self._rules)
        return self._fallback.find(path, kind)


# -- without it --------------------------------------------------------------------------------

_Candidate = tuple[int, bytes, bytes, Callable[[bytes], object]]
"""Index, what the path begins with, a text that must be in it, and the expression."""


class _Frame:
    """What can match directly inside a directory."""

    __slots__ = ("by_kind", "others", "subtrees")

    def __init__(self, subtrees: list[int], others: tuple[int, ...]) -> None:
        self.subtrees: list[int] = subtrees
        """Of whole subtrees the last, for each type."""
        self.others: tuple[int, ...] = others
        """All other candidates."""
        self.by_kind: dict[int, list[_Candidate]] = {}


class PythonMatcher:
    """Literal paths and whole subtrees by a look into a table; of the others those whose beginning fits."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._literals: dict[bytes, list[int]] = {}
        self._subtrees: dict[bytes, list[int]] = {}
        self._below: dict[bytes, list[int]] = {}
        """Of subtrees, with and without their tops."""
        self._stems: dict[bytes, list[int]] = {}
        self._compiled: dict[int, Callable[[bytes], object]] = {}
        for index, (expression, _) in enumerate(rules):
            if expression.kind == LITERAL:
                self._literals.setdefault(expression.prefix, []).append(index)
            elif expression.kind == SUBTREE:
                self._subtrees.setdefault(expression.prefix, []).append(index)
                self._below.setdefault(expression.prefix, []).append(index)
            elif expression.kind == BELOW:
                self._below.setdefault(expression.prefix, []).append(index)
            else:
                stem = expression.prefix.rpartition(b"/")[0]
                self._stems.setdefault(stem, []).append(index)
        self._top = self._child(_Frame([-1] * 256, ()), b"")
        self._frames: dict[bytes, _Frame] = {}
        """By directory; those in which nothing new can match share one."""

    def find(self, path: bytes, kind: int) -> int:
        """Return the number of the last rule that matches *path* for *kind*; -1 if there is none."""
        if not path.startswith(b"/"):  # as only an odd alias makes it
            return self._scan(path, kind)
        return self._find(self._frame(path.rpartition(b"/")[0]), path, kind)

    def inside(self, directory: bytes) -> Callable[[bytes, int], int]:
        """Return a `find` for the entries of *directory*, which takes their whole paths."""
        if directory and not directory.startswith(b"/"):
            return self._scan
        return _Inside(self, self._frame(directory.removesuffix(b"/")), directory.removesuffix(b"/") + b"/").find

    def _find(self, frame: _Frame, path: bytes, kind: int) -> int:
        best = self.whole(frame, path, kind)
        for index, _, required, match in self.candidates(frame, kind):
            if index < best:
                break
            if required in path and match(path + _TAILS[kind]):
                return index
        return best

    def whole(self, frame: _Frame, path: bytes, kind: int) -> int:
        """The last rule without an expression that has to be tried."""
        best = frame.subtrees[kind]
        if path in self._literals:
            best = max(best, self._last(self._literals[path], kind))
        if path in self._subtrees:
            best = max(best, self._last(self._subtrees[path], kind))
        return best

    def _scan(self, path: bytes, kind: int) -> int:
        for index in range(len(self._rules) - 1, -1, -1):
            expression, only = self._rules[index]
            if only in (None, kind) and compiled(expression, only)(b"%b%c" % (path, kind)):
                return index
        return -1

    def _last(self, indexes: list[int], kind: int) -> int:
        for index in reversed(indexes):
            if self._rules[index][1] in (None, kind):
                return index
        return -1

    def _frame(self, directory: bytes) -> _Frame:
        """The frame of *directory*, the part of a path before its last slash."""
        known = self._frames.get(directory)
        if known is not None:
            return known
        missing = []
        while directory and directory not in self._frames:
            missing.append(directory)
            directory = directory.rpartition(b"/")[0]
        frame = self._frames[directory] if directory else self._top
        if len(self._frames) > _FRAMES_MAX:
            self._frames.clear()
        for each in reversed(missing):
            frame = self._frames[each] = self._child(frame, each)
        if not directory and not missing:
            self._frames[b""] = frame
        return frame

    def _child(self, above: _Frame, directory: bytes) -> _Frame:
        subtrees, stems = self._below.get(directory), self._stems.get(directory)
        if subtrees is None and stems is None:
            return above
        last = above.subtrees
        if subtrees is not None:
            last = last.copy()
            for kind in KINDS:
                last[kind] = max(last[kind], self._last(subtrees, kind))
        others = above.others if stems is None else tuple(sorted((*above.others, *stems), reverse=True))
        return _Frame(last, others)

    def candidates(self, frame: _Frame, kind: int) -> list[_Candidate]:
        """The other rules that may match below there, the last one first."""
        known = frame.by_kind.get(kind)
        if known is not None:
            return known
        found: list[_Candidate] = []
        for index in frame.others:
            expression, only = self._rules[index]
            if only not in (None, kind):
                continue
            match = self._compiled.get(index)
            if match is None:
                match = self._compiled[index] = compiled(expression, only)
            found.append((index, expression.prefix, expression.required, match))
        frame.by_kind[kind] = found
        return found


class _Inside:
    """Names in one directory: what cannot match any of them has been left out."""

    __slots__ = ("_by_kind", "_frame", "_matcher", "_place")

    def __init__(self, matcher: PythonMatcher, frame: _Frame, place: bytes) -> None:
        self._matcher, self._frame, self._place = matcher, frame, place
        self._by_kind: dict[int, list[_Candidate]] = {}

    def find(self, path: bytes, kind: int) -> int:
        """Find the rule for a path in this directory, as `PythonMatcher.find` does."""
        candidates = self._by_kind.get(kind)
        if candidates is None:
            candidates = self._by_kind[kind] = self._chosen(kind)
        best = self._matcher.whole(self._frame, path, kind)
        for index, _, required, match in candidates:
            if index < best:
                break
            if required in path and match(path + _TAILS[kind]):
                return index
        return best

    def _chosen(self, kind: int) -> list[_Candidate]:
        place, least = self._place, self._frame.subtrees[kind]
        found: list[_Candidate] = []
        for candidate in self._matcher.candidates(self._frame, kind):
            index, prefix, required, match = candidate
            if index < least:
                break
            if not (place.startswith(prefix) or prefix.startswith(place)):
                continue
            if required in place:
                found.append((index, prefix, b"", match))
                continue
            # No name has a slash: the last one in the text is the one before the name.
            cut = required.rfind(b"/") + 1
            if not cut or place.endswith(required[:cut]):
                found.append(candidate)
        return found
