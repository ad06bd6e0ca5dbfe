"""Which answer to a request for a range of a blob may be used, and how; no I/O.

Owns the table of answers.  The digest of the blob pins its content, so that no validator is sent and a range that
came from one server can be joined with one from another.  Only closed single ranges inside the blob are asked for:
nothing else is understood everywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

__all__ = ["Answer", "RangeSet", "Verdict", "judge", "parse_content_range", "range_header"]

_CONTENT_RANGE = re.compile(r"\s*bytes\s+(?:(\d{1,19})-(\d{1,19})|\*)/(\d{1,19}|\*)\s*", re.IGNORECASE)


def range_header(start: int, end: int) -> str:
    """The header for the bytes from *start* to before *end*."""
    return f"bytes={start}-{end - 1}"


def parse_content_range(text: str) -> tuple[int | None, int | None, int | None]:
    """First byte, byte after the last one, and size of the whole; None for what is ``*``.

    Raises:
        ValueError: it is malformed.
    """
    found = _CONTENT_RANGE.fullmatch(text)
    if found is None:
        raise ValueError(f"Content-Range {text[:80]!r} is malformed")
    start, last, size = found.groups()
    if start is not None and int(last) < int(start):
        raise ValueError(f"Content-Range {text[:80]!r} ends before it starts")
    return (
        None if start is None else int(start),
        None if last is None else int(last) + 1,
        None if size == "*" else int(size),
    )


class Answer(Enum):
    """What the body of a response is good for."""

    PART = "the bytes from the start that was asked for"
    WHOLE = "the whole blob, from its first byte"
    NO_RANGES = "nothing: the host cannot do ranges"
    WRONG_SIZE = "nothing: the blob has another size there"
    REFUSED = "nothing: an error"


@dataclass(frozen=True, slots=True)
class Verdict:
    """How to go on with one response."""

    answer: Answer
    end: int = 0
    """For a part: the byte behind its last one."""
    size: int | None = None
    """That the server claims, if it is the wrong one."""


def judge(
    status: int, content_ranges: list[str], content_length: int | None, start: int, end: int, size: int, asked: bool
) -> Verdict:
    """Judge an answer of a server that was asked for *start* to *end* of a blob of *size* bytes.

    Args:
        content_ranges: values of all such headers.
        content_length: as the header says, if it is there.
        asked: a range was asked for; otherwise the whole.
    """
    if status == 206 and asked:
        return _partial(content_ranges, start, end, size)
    if status == 200:
        if content_length is not None and content_length != size:
            return Verdict(Answer.WRONG_SIZE, size=content_length)
        return Verdict(Answer.WHOLE, size)
    if status == 416 and asked:
        claimed = None
        if len(content_ranges) == 1:
            try:
                claimed = parse_content_range(content_ranges[0])[2]
            except ValueError:
                claimed = None
        if claimed is not None and claimed != size:
            return Verdict(Answer.WRONG_SIZE, size=claimed)
        return Verdict(Answer.NO_RANGES)
    return Verdict(Answer.REFUSED)


def _partial(content_ranges: list[str], start: int, end: int, size: int) -> Verdict:
    if len(content_ranges) != 1:
        return Verdict(Answer.NO_RANGES)
    try:
        first, after, total = parse_content_range(content_ranges[0])
    except ValueError:
        return Verdict(Answer.NO_RANGES)
    if total is not None and total != size:
        return Verdict(Answer.WRONG_SIZE, size=total)
    if first != start or after is None or after > end:
        return Verdict(Answer.NO_RANGES)
    return Verdict(Answer.PART, after)


class RangeSet:
    """Which bytes are there: sorted ranges that do not touch each other."""

    def __init__(self, ranges: list[tuple[int, int]] | None = None) -> None:
        self._ranges: list[tuple[int, int]] = []
        for start, end in ranges or ():
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Bytes from *start* to before *end* have come."""
        if start >= end:
            return
        before = [known for known in self._ranges if known[1] < start]
        after = [known for known in self._ranges if known[0] > end]
        touching = self._ranges[len(before) : len(self._ranges) - len(after)]
        merged = (min([start, *(known[0] for known in touching)]), max([end, *(known[1] for known in touching)]))
        self._ranges = [*before, merged, *after]

    def end_from(self, offset: int) -> int:
        """How far bytes are there without a gap from *offset* on."""
        return next((end for start, end in self._ranges if start <= offset < end), offset)

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """What is missing between two bytes."""
        missing: list[tuple[int, int]] = []
        for first, after in self._ranges:
            if after <= start or first >= end:
                continue
            if first > start:
                missing.append((start, first))
            start = max(start, after)
        if start < end:
            missing.append((start, end))
        return missing

    @property
    def total(self) -> int:
        """How many bytes are there."""
        return sum(end - start for start, end in self._ranges)

    def as_list(self) -> list[tuple[int, int]]:
        """Return the ranges as (start, end), sorted and without overlap."""
        return list(self._ranges)
