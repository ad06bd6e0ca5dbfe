"""Shows progress on standard error, so that standard output has the result alone and can be parsed.

Bars on a terminal, plain lines elsewhere; or a line of JSON for each event, in the form of `composefs_async.progress`.
Plain lines tell what has been done, and of checks and collections of garbage, now and then, how far they have come.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

import click

from ..progress import (
    BlobPushed,
    BytesFetched,
    BytesMoved,
    BytesRead,
    CheckProgress,
    CollectProgress,
    ImageMade,
    ImageTagged,
    ImportStarted,
    LayerDiffersFromPeers,
    LayerDone,
    LayerPartial,
    LayerSkipped,
    LayerStarted,
    Message,
    ProgressCallback,
    ProgressEvent,
    RateLimit,
    RefWritten,
    RegistryWarning,
    Retrying,
    SourceChosen,
    SourceFailed,
    TransferStarted,
    to_json,
)
from .account import is_quiet
from .output import printable, say

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["progress_option", "showing", "size_text"]

_SHORT = 19  # of a digest: the algorithm and twelve digits
_INTERVAL = 10.0
"""Seconds between two plain lines on how far something has come."""
_STAGES = {"follow": "streams and images", "compare": "directories compared", "remove": "objects removed"}
"""Of a collection of garbage."""


def progress_option(function: Any) -> Any:
    """The option ``--progress`` of a command."""
    return click.option(
        "--progress",
        "progress",
        type=click.Choice(["auto", "bars", "plain", "json", "none"]),
        default="auto",
        show_default=True,
        help="On standard error; auto is bars on a terminal and plain lines elsewhere.",
    )(function)


@contextmanager
def showing(kind: str, *, counts: bool = False) -> Iterator[ProgressCallback]:
    """A callback that shows events in the way *kind* asks for, until the end of the block.

    Args:
        counts: bars are of things, not of bytes.
    """
    if sys.stderr is None or (kind == "auto" and is_quiet()):  # None: the program was started with it closed
        kind = "none"
    elif kind == "auto":
        kind = "bars" if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else "plain"
    if kind == "bars":
        with _bars(counts) as callback:
            yield callback
    else:
        callbacks: dict[str, ProgressCallback] = {"plain": _Plain(), "json": _json, "none": _nothing}
        yield callbacks[kind]


def _nothing(event: ProgressEvent) -> None:
    pass


def _json(event: ProgressEvent) -> None:
    say(json.dumps(to_json(event)))


class _Plain:
    def __init__(self) -> None:
        self._told = time.monotonic()

    def __call__(self, event: ProgressEvent) -> None:
        if line := _done(event) or (self._is_time() and _how_far(event)):
            say(line)
            self._told = time.monotonic()

    def _is_time(self) -> bool:
        return time.monotonic() - self._told >= _INTERVAL


def _done(event: ProgressEvent) -> str:
    match event:
        case ImportStarted(reference, _, layers, total):
            number = "1 layer" if layers == 1 else f"{layers} layers"
            return f"{printable(reference)}: {number}, {size_text(total)}"
        case LayerSkipped(diff_id):
            return f"{diff_id[:_SHORT]}: present"
        case LayerDone(diff_id, stats):
            read = size_text(stats.bytes_read)
            counts = f"{stats.objects_stored} objects stored, {stats.objects_present} present"
            return f"{diff_id[:_SHORT]}: {counts}, {read} read"
        case LayerDiffersFromPeers(diff_id, reason):
            return f"{diff_id[:_SHORT]}: {printable(reason)}"
        case LayerPartial(diff_id, fetched, size):
            return f"{diff_id[:_SHORT]}: {size_text(fetched)} of {size_text(size)} are fetched, the rest is here"
        case ImageMade(version, image_id, size):
            return f"image {image_id[:12]}: EROFS version {version}, {size_text(size)}"
        case ImageTagged(tag, _):
            return f"tagged {printable(tag)}"
        case TransferStarted(reference, objects, size, present):
            return f"{printable(reference)}: {objects} objects, {size_text(size)}; {present} present"
        case RefWritten(name, _):
            return f"named {printable(name)}"
        case Message(text):
            return printable(text)
        case _:
            return _of_registry(event)


def _of_registry(event: ProgressEvent) -> str:
    match event:
        case SourceFailed(source, reason):
            return printable(f"{source}: {reason}; trying the next source")
        case SourceChosen(_, host, True):
            return f"from the mirror {printable(host)}"
        case Retrying(what, _, attempt, of, delay, reason):
            return printable(f"{what}: {reason}; waiting {delay:.1f} s before attempt {attempt} of {of}")
        case BlobPushed(digest, size, how):
            return f"{digest[:_SHORT]}: {size_text(size)}, {how}"
        case RegistryWarning(host, text):
            return printable(f"{host} warns: {text}")
        case RateLimit(host, limit, remaining, _, source) if limit is not None and remaining is not None:
            return printable(f"{host}: {remaining} of {limit} requests left{f' for {source}' if source else ''}")
        case _:
            return ""


def _how_far(event: ProgressEvent) -> str:
    match event:
        case CheckProgress(stage, done, total, read):
            return f"{stage}: {done} of {total}, {size_text(read)} read"
        case CollectProgress(stage, done, total):
            return f"{_STAGES[stage]}: {done}" + (f" of {total}" if total else "")
        case BytesMoved(moved, total, objects):
            return f"{size_text(moved)} of {size_text(total)}, {objects} objects"
        case _:
            return ""


@contextmanager
def _bars(counts: bool) -> Iterator[ProgressCallback]:
    from rich import progress as bars
    from rich.console import Console

    amounts = (bars.MofNCompleteColumn(),) if counts else (bars.DownloadColumn(), bars.TransferSpeedColumn())
    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), *amounts, bars.TimeRemainingColumn())
    console = Console(file=cast(TextIO, _Unfailing(sys.stderr)))
    with bars.Progress(*columns, console=console, refresh_per_second=10) as progress:
        yield _Bars(progress)


class _Unfailing:
    """A stream that loses what it cannot write: nothing ends because nobody can see how far it has come."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


class _Bars:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._read_before: dict[str, int] = {}

    def __call__(self, event: ProgressEvent) -> None:
        match event:
            case LayerStarted(diff_id, _, size):
                self._tasks[diff_id] = self._progress.add_task(diff_id[:_SHORT], total=size or None)
            case BytesRead(diff_id, fetched, _) if diff_id in self._tasks:
                self._progress.update(self._tasks[diff_id], completed=fetched)
            case LayerDone(diff_id, stats) if diff_id in self._tasks:
                self._progress.update(self._tasks[diff_id], completed=stats.bytes_read, total=stats.bytes_read)
            case CheckProgress(stage, done, total, read):
                self._check(stage, done, total, read)
            case CollectProgress(stage, done, total):
                self._collect(stage, done, total)
            case TransferStarted(reference, _, size, _):
                self._tasks[""] = self._progress.add_task(printable(reference), total=size or None)
            case BytesMoved(moved, total, _) if "" in self._tasks:
                self._progress.update(self._tasks[""], completed=moved, total=total)
            case LayerSkipped(diff_id):
                self._progress.console.print(f"{diff_id[:_SHORT]} present", highlight=False)
            case LayerDiffersFromPeers() | LayerPartial():
                self._progress.console.print(_done(event), highlight=False, markup=False)
            case Message(text):
                self._progress.console.print(printable(text), highlight=False, markup=False)
            case BytesFetched(diff_id, _, received, resumed, total, connections) if diff_id in self._tasks:
                self._fetched(diff_id, received + resumed, total, connections)
            case _:
                if line := _of_registry(event):
                    self._progress.console.print(line, highlight=False, markup=False)

    def _fetched(self, diff_id: str, here: int, total: int, connections: int) -> None:
        """While a layer is on its way, its bar says how much of it is here, and over how many connections it comes."""
        note = f" ({here * 100 // total} % here, {connections} connections)" if here < total else ""
        self._progress.update(self._tasks[diff_id], description=f"{diff_id[:_SHORT]}{note}")

    def _check(self, stage: str, done: int, total: int, read: int) -> None:
        """The bars are of bytes, and how many there will be is told by the share of the work that is done."""
        read -= self._read_before.setdefault(stage, read)
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=None)
        self._progress.update(self._tasks[stage], completed=read, total=read * total // done if done else None)

    def _collect(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(_STAGES[stage], total=None)
        self._progress.update(self._tasks[stage], completed=done, total=total or None)


def size_text(size: int) -> str:
    """A size in bytes for people: ``12.30 MiB``, as cfsctl prints it."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            break
        amount /= 1024
    return f"{size} B" if unit == "B" else f"{amount:.2f} {unit}"
