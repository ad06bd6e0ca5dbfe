"""SELinux policies: which label a path has, without SELinux and without ``setfiles``.

Owns the files of a policy that say so, file_contexts(5) and its relatives, and looking labels up.  Does not own finding
them in a tree, nor labelling it (`labels`).

Two programs read these files differently, and a `Policy` can do both:

===================================================  ============================  ==================================
case                                                 `composefs`                   `libselinux` (restorecon)
===================================================  ============================  ==================================
equal expressions in ``.local`` and ``.homedirs``    ``.homedirs``, read last      ``.local``, read last
a path without metacharacters, before an expression  the expression                the path
``<<none>>`` for such a path, before an expression   the expression                no label
an alias of a path below an alias                    looked up on the way down,    the first alias whose path begins
                                                     on the path as replaced       the real path
an alias in both ``.subs`` and ``.subs_dist``        that of ``.subs_dist``        one after the other
===================================================  ============================  ==================================

Images must have the labels of the first column, or their digests differ; `disagreements` finds where a running system
would change them.  Policies as distributions ship them have no such case.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from ..errors import SELinuxPolicyError
from .matching import KINDS, Matcher, Rule, compiled, matcher_for
from .regex import BracketError, parse_expression

if TYPE_CHECKING:
    from ..tree.inodes import Directory, ExternalFile
    from .labels import ReadFile

__all__ = [
    "ALIAS_FILES",
    "FILE_LIMIT",
    "SPECIFICATION_FILES",
    "SPECIFICATION_LIMIT",
    "Policy",
    "Specification",
    "has_metacharacters",
    "substituted",
]

SPECIFICATION_FILES: Final = ("file_contexts", "file_contexts.local", "file_contexts.homedirs")
"""In the order in which composefs-rs reads them; only the first must be there."""
ALIAS_FILES: Final = ("file_contexts.subs", "file_contexts.subs_dist")
FILE_LIMIT: Final = 64 << 20
"""Bytes of one file."""
SPECIFICATION_LIMIT: Final = 200_000
"""Lines with a specification, in all files together."""

Engine = Literal["re2", "python"]
Reading = Literal["composefs", "libselinux"]

_NONE: Final = b"<<none>>"
_METACHARACTERS: Final = frozenset(b".^$?*+|[({")
# The white space of Unicode (PropList.txt); str.split also takes four control characters.
_spaces = re.compile("[\t-\r \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")


@dataclass(frozen=True, slots=True)
class Specification:
    """One line of a policy."""

    regex: bytes
    kind: int | None
    """The type of files that it is for, one of `KINDS`; None for any."""
    context: bytes | None
    """The label; None for ``<<none>>``."""
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.regex.decode(errors='backslashreplace')}"


class Policy:
    """What the files of one policy say together; make it with `from_files` or `labels.find_policy`."""

    def __init__(
        self,
        specifications: tuple[Specification, ...],
        aliases: tuple[Mapping[bytes, bytes], ...],
        *,
        engine: Engine | None = None,
        reading: Reading = "composefs",
    ) -> None:
        """Put together what has been read.

        Args:
            specifications: in the order of `SPECIFICATION_FILES`.
            aliases: of `ALIAS_FILES`.
            engine: ``re2`` or ``python``; the first if it is installed.
            reading: whose reading counts.

        Raises:
            SELinuxPolicyError: an expression is malformed.
        """
        self.specifications: tuple[Specification, ...] = specifications
        self.reading: Reading = reading
        self.aliases: tuple[Mapping[bytes, bytes], ...] = aliases
        self._engine = engine
        self._ordered = specifications if reading == "composefs" else _libselinux_order(specifications)
        try:
            self._matcher: Matcher = matcher_for([_rule(each, reading) for each in self._ordered], engine=engine)
        except (re.error, RecursionError, OverflowError) as error:
            raise SELinuxPolicyError(SPECIFICATION_FILES[0], f"an expression is too much for Python: {error}") from None
        self._contexts = [*(each.context for each in self._ordered), None]
        """By the index of a rule; the last one is for -1, no rule."""
        self._merged = {alias: original for table in aliases for alias, original in table.items()}
        self._other: Policy | None = None

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], *, engine: Engine | None = None) -> Policy:
        """The policy whose files have this content, by their names without a directory.

        Args:
            engine: ``re2`` or ``python``, which give the same labels; by default the first if it is installed.

        Raises:
            SELinuxPolicyError: ``file_contexts`` is missing, or a file is malformed.
        """
        if SPECIFICATION_FILES[0] not in files:
            raise SELinuxPolicyError(SPECIFICATION_FILES[0], "the policy has no such file")
        found: list[Specification] = []
        for name in SPECIFICATION_FILES:
            for each in _specifications(name, files.get(name, b"")):
                found.append(each)
                if len(found) > SPECIFICATION_LIMIT:
                    raise SELinuxPolicyError(name, f"more than {SPECIFICATION_LIMIT} specifications", each.line)
        aliases = tuple(dict(_aliases(name, files.get(name, b""))) for name in ALIAS_FILES)
        return cls(tuple(found), aliases, engine=engine)

    @classmethod
    def from_tree(cls, root: Directory, read: ReadFile | None = None, *, engine: Engine | None = None) -> Policy | None:
        """The policy that ``/etc/selinux/config`` of a tree names; None if there is none.  See `labels.find_policy`.

        Args:
            read: gives the content of files that are not in the tree itself, by their path and inode.

        Raises:
            SELinuxPolicyError: a file of it is missing, malformed, too large, or no regular file; or its content is not
                in the tree, and there is no *read*.
        """
        from .labels import find_policy

        def refuse(path: bytes, inode: ExternalFile) -> bytes:
            raise SELinuxPolicyError(path.decode(errors="backslashreplace"), "its content is not in the tree")

        return find_policy(root, read or refuse, engine=engine)

    def label(self, path: bytes, kind: str | int) -> bytes | None:
        """The label of the file *path*, absolute; None if it has none.

        Args:
            kind: ``-``, ``d``, ``l``, ``c``, ``b``, ``p`` or ``s``, as selabel_file(5) has them.
        """
        found = self.specification(path, kind)
        return None if found is None else found.context

    def specification(self, path: bytes, kind: str | int) -> Specification | None:
        """The line that decides for *path*."""
        kind = ord(kind) if isinstance(kind, str) else kind
        if kind not in KINDS:
            raise ValueError(f"{chr(kind)!r} is no type of files, which are {', '.join(map(chr, KINDS))}")
        return self.decide(self.effective(path), kind)

    def decide(self, effective: bytes, kind: int) -> Specification | None:
        """The line for a path that `inside` made."""
        if self.reading == "libselinux":
            effective = substituted(self.aliases, effective)
        index = self._matcher.find(effective, kind)
        return None if index < 0 else self._ordered[index]

    def effective(self, path: bytes) -> bytes:
        """The path that `decide` wants for the absolute *path*: with aliases replaced on the way down."""
        if not self._merged or self.reading == "libselinux":
            return path
        found = b"/"
        for name in path.split(b"/"):
            if name:
                found = self.inside(found, name)
        return found

    def inside(self, directory: bytes, name: bytes) -> bytes:
        """The path by which *name* is looked up in a directory that is looked up as *directory*."""
        path = (
            b"%b%b" % (directory, name) if directory.endswith(b"/") or not directory else b"%b/%b" % (directory, name)
        )
        return path if self.reading == "libselinux" else self._merged.get(path, path)

    def labels_in(self, directory: bytes) -> Callable[[bytes, int], bytes | None]:
        """What gives the labels of names in a directory that is looked up as *directory*; faster than `decide`."""
        prefix = directory if directory.endswith(b"/") or not directory else directory + b"/"
        contexts = self._contexts
        if self.reading == "libselinux" or prefix != directory.rstrip(b"/") + b"/":

            def decided(name: bytes, kind: int) -> bytes | None:
                found = self.decide(self.inside(directory, name), kind)
                return None if found is None else found.context

            return decided
        find, aliases, anywhere = self._matcher.inside(directory), self._merged, self._matcher.find

        def label(name: bytes, kind: int) -> bytes | None:
            path = prefix + name
            if path in aliases:
                return contexts[anywhere(aliases[path], kind)]
            return contexts[find(path, kind)]

        return label

    # -- where the two readings differ

    def as_libselinux(self) -> Policy:
        """The policy of these files as ``restorecon`` and ``setfiles`` read them; made once."""
        if self._other is None:
            self._other = Policy(self.specifications, self.aliases, engine=self._engine, reading="libselinux")
        return self._other

    def disagreement(self, path: bytes, kind: str | int) -> tuple[Specification | None, Specification | None] | None:
        """The lines that composefs and ``restorecon`` go by for *path*, if they give it different labels."""
        ours, theirs = self.specification(path, kind), self.as_libselinux().specification(path, kind)
        if (ours and ours.context) == (theirs and theirs.context):
            return None
        return ours, theirs


def _rule(specification: Specification, reading: Reading) -> Rule:
    try:
        expression = parse_expression(specification.regex, grouped=reading == "composefs")
        if expression.re2 is None:  # the others are made of what both engines know
            compiled(expression, specification.kind)
    except BracketError as error:
        raise SELinuxPolicyError(
            specification.file, f"{error} in {_shown(specification.regex)}", specification.line
        ) from None
    except (re.error, RecursionError, OverflowError) as error:
        reason = f"{error} in {_shown(specification.regex)}"
        raise SELinuxPolicyError(specification.file, reason, specification.line) from None
    return expression, specification.kind


def _shown(regex: bytes) -> str:
    return repr(regex[:100].decode(errors="backslashreplace")) + ("…" if len(regex) > 100 else "")


def _libselinux_order(specifications: tuple[Specification, ...]) -> tuple[Specification, ...]:
    """Files in the order of libselinux, and behind them the paths without metacharacters."""
    first, local, homedirs = SPECIFICATION_FILES
    by_file = sorted(specifications, key=lambda each: (first, homedirs, local).index(each.file))
    return tuple(sorted(by_file, key=lambda each: not has_metacharacters(each.regex)))


def has_metacharacters(regex: bytes) -> bool:
    """Whether libselinux takes *regex* for an expression, and not for a path."""
    escaped = False
    for byte in regex:
        if escaped:
            escaped = False
        elif byte == 0x5C:
            escaped = True
        elif byte in _METACHARACTERS:
            return True
    return False


def substituted(tables: tuple[Mapping[bytes, bytes], ...], path: bytes) -> bytes:
    """The path by which libselinux looks up *path*: of each table the first alias that is it or above it counts."""
    for table in tables:
        for alias, original in table.items():
            if path == alias or (path.startswith(alias) and path[len(alias) : len(alias) + 1] == b"/"):
                path = original + path[len(alias) :]
                break
    return path


# -- files -------------------------------------------------------------------------------------


def _specifications(name: str, content: bytes) -> Iterator[Specification]:
    for line, fields in _fields(name, content):
        regex, *others = fields
        kind = None
        if others and others[0].startswith(b"-"):
            code = others.pop(0)[1:]
            if len(code) != 1 or code not in KINDS:
                raise SELinuxPolicyError(name, f"{_shown(b'-' + code)} is no type of files", line)
            kind = code[0]
        if not others:
            raise SELinuxPolicyError(name, "the context is missing", line)
        if len(others) > 1:
            raise SELinuxPolicyError(name, "there is something after the context", line)
        yield Specification(regex, kind, None if others[0] == _NONE else others[0], name, line)


def _aliases(name: str, content: bytes) -> Iterator[tuple[bytes, bytes]]:
    for line, fields in _fields(name, content):
        if len(fields) != 2:
            reason = "the original path is missing" if len(fields) < 2 else "there is something after the original path"
            raise SELinuxPolicyError(name, reason, line)
        yield fields[0], fields[1]


def _fields(name: str, content: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """The fields of each line that has some and is no comment, with its number."""
    if len(content) > FILE_LIMIT:
        raise SELinuxPolicyError(name, f"{len(content)} bytes are more than the limit of {FILE_LIMIT}")
    for line, raw in enumerate(content.split(b"\n"), 1):
        if raw.isascii():
            fields = raw.split()  # of bytes: the white space of ASCII
        else:
            try:
                fields = [field.encode() for field in _spaces.split(raw.decode()) if field]
            except UnicodeDecodeError:
                raise SELinuxPolicyError(name, "it is not UTF-8", line) from None
        if fields and not fields[0].startswith(b"#"):
            if b"\0" in raw:
                raise SELinuxPolicyError(name, "a NUL byte", line)
            yield line, fields
