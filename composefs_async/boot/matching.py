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

from .regex import LITERAL, SUBTREE, Expression

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["KINDS", "Matcher", "PythonMatcher", "Re2Matcher", "Rule", "matcher_for", "re2_module"]

KINDS: Final = b"-dlcbps"
"""Types of files: regular, directory, symbolic link, character and block device, pipe, socket (selabel_file(5))."""

_FRAMES_MAX: Final = 1 << 14
_RE2_MEMORY: Final = 256 << 20

Rule = tuple[Expression, int | None]
"""An expression, and the only type of files that it is for."""


class Matcher(Protocol):
    """Finds the rule that decides."""

    def find(self, path: bytes, kind: int) -> int:
        """The index of the last rule that matches *path*, a file of type *kind*; -1 if none does."""
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
        self._match: Callable[[bytes], list[int]] = found.Match if self._indexes else lambda _: []
        self._rules = rules
        self._fallback: PythonMatcher | None = None

    def find(self, path: bytes, kind: int) -> int:
        subject = b"%b%c" % (path, kind)
        found = self._match(subject)
        if not found:  # also what it says when its memory is used up
            if self._fallback is None:
                self._fallback = PythonMatcher(self._rules)
            return self._fallback.find(path, kind)
        best = self._indexes[max(found)]
        for index, match in self._single:
            if index < best:
                break
            if match(subject):
                return index
        return best


# -- without it --------------------------------------------------------------------------------

_Candidate = tuple[int, bytes, Callable[[bytes], object]]
"""Index, a text that must be in the path, and the expression."""


class _Frame:
    """What can match directly inside a directory."""

    __slots__ = ("by_kind", "others", "subtrees")

    def __init__(self, subtrees: list[int], others: tuple[int, ...]) -> None:
        self.subtrees, self.others = subtrees, others
        """Of whole subtrees the last, for each type; and all other candidates."""
        self.by_kind: dict[int, list[_Candidate]] = {}


class PythonMatcher:
    """Literal paths and whole subtrees by a look into a table; of the others those whose beginning fits."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._literals: dict[bytes, list[int]] = {}
        self._subtrees: dict[bytes, list[int]] = {}
        self._stems: dict[bytes, list[int]] = {}
        self._compiled: dict[int, Callable[[bytes], object]] = {}
        for index, (expression, _) in enumerate(rules):
            if expression.kind == LITERAL:
                self._literals.setdefault(expression.prefix, []).append(index)
            elif expression.kind == SUBTREE:
                self._subtrees.setdefault(expression.prefix, []).append(index)
            else:
                stem = expression.prefix.rpartition(b"/")[0]
                self._stems.setdefault(stem, []).append(index)
        self._top = self._child(_Frame([-1] * 256, ()), b"")
        self._frames: dict[bytes, _Frame] = {}
        """By directory; those in which nothing new can match share one."""

    def find(self, path: bytes, kind: int) -> int:
        parent, slash, _ = path.rpartition(b"/")
        frame = self._frames.get(parent)
        if frame is None or not slash:
            if not slash:  # only an odd alias makes such a path
                return self._scan(path, kind)
            frame = self._frame(parent)
        best = frame.subtrees[kind]
        for table in (self._literals, self._subtrees):
            if path in table:
                best = max(best, self._last(table[path], kind))
        candidates = frame.by_kind.get(kind)
        if candidates is None:
            candidates = frame.by_kind[kind] = self._candidates(frame, kind)
        subject = b""
        for index, required, match in candidates:
            if index < best:
                break
            if required in path:
                subject = subject or b"%b%c" % (path, kind)
                if match(subject):
                    return index
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
        """Of *directory*, the part of a path before its last slash."""
        missing = []
        while directory and directory not in self._frames:
            missing.append(directory)
            directory = directory.rpartition(b"/")[0] if b"/" in directory else b""
        frame = self._frames[directory] if directory else self._top
        if len(self._frames) > _FRAMES_MAX:
            self._frames.clear()
        for each in reversed(missing):
            frame = self._frames[each] = self._child(frame, each)
        if not directory and not missing:
            self._frames[b""] = frame
        return frame

    def _child(self, above: _Frame, directory: bytes) -> _Frame:
        subtrees, stems = self._subtrees.get(directory), self._stems.get(directory)
        if subtrees is None and stems is None:
            return above
        last = above.subtrees
        if subtrees is not None:
            last = last.copy()
            for kind in KINDS:
                last[kind] = max(last[kind], self._last(subtrees, kind))
        others = above.others if stems is None else tuple(sorted((*above.others, *stems), reverse=True))
        return _Frame(last, others)

    def _candidates(self, frame: _Frame, kind: int) -> list[_Candidate]:
        found: list[_Candidate] = []
        for index in frame.others:
            expression, only = self._rules[index]
            if only not in (None, kind):
                continue
            match = self._compiled.get(index)
            if match is None:
                match = self._compiled[index] = compiled(expression, only)
            found.append((index, expression.required, match))
        return found
