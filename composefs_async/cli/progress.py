"""Shows progress on standard error, so that standard output has the result alone and can be parsed.

Bars on a terminal, plain lines elsewhere; or a line of JSON for each event, in the form of `composefs_async.progress`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ..progress import (
    BytesRead,
    CheckProgress,
    ImageMade,
    ImageTagged,
    ImportStarted,
    LayerDone,
    LayerSkipped,
    LayerStarted,
    Message,
    ProgressCallback,
    ProgressEvent,
    to_json,
)
from .context import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["progress_option", "showing", "size_text"]

_SHORT = 19  # of a digest: the algorithm and twelve digits


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
def showing(kind: str) -> Iterator[ProgressCallback]:
    """A callback that shows events in the way *kind* asks for, until the end of the block."""
    if sys.stderr is None:  # as it is when the program was started with it closed
        kind = "none"
    elif kind == "auto":
        kind = "bars" if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else "plain"
    if kind == "bars":
        with _bars() as callback:
            yield callback
    else:
        yield {"plain": _plain, "json": _json, "none": _nothing}[kind]


def _nothing(event: ProgressEvent) -> None:
    pass


def _json(event: ProgressEvent) -> None:
    click.echo(json.dumps(to_json(event)), err=True)


def _plain(event: ProgressEvent) -> None:
    match event:
        case ImportStarted(reference, _, layers, total):
            number = "1 layer" if layers == 1 else f"{layers} layers"
            click.echo(f"{printable(reference)}: {number}, {size_text(total)}", err=True)
        case LayerSkipped(diff_id):
            click.echo(f"{diff_id[:_SHORT]}: present", err=True)
        case LayerDone(diff_id, stats):
            click.echo(
                f"{diff_id[:_SHORT]}: {stats.objects_stored} objects stored, {stats.objects_present} present, "
                f"{size_text(stats.bytes_read)} read",
                err=True,
            )
        case ImageMade(version, image_id, size):
            click.echo(f"image {image_id[:12]}: EROFS version {version}, {size_text(size)}", err=True)
        case ImageTagged(tag, _):
            click.echo(f"tagged {printable(tag)}", err=True)
        case Message(text):
            click.echo(printable(text), err=True)
        case _:
            pass


@contextmanager
def _bars() -> Iterator[ProgressCallback]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), refresh_per_second=10) as progress:
        yield _Bars(progress)


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
            case LayerSkipped(diff_id):
                self._progress.console.print(f"{diff_id[:_SHORT]} present", highlight=False)
            case Message(text):
                self._progress.console.print(printable(text), highlight=False, markup=False)
            case _:
                pass

    def _check(self, stage: str, done: int, total: int, read: int) -> None:
        """The bars are of bytes, and how many there will be is told by the share of the work that is done."""
        read -= self._read_before.setdefault(stage, read)
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=None)
        self._progress.update(self._tasks[stage], completed=read, total=read * total // done if done else None)


def size_text(size: int) -> str:
    """A size in bytes for people: ``12.30 MiB``, as cfsctl prints it."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            break
        amount /= 1024
    return f"{size} B" if unit == "B" else f"{amount:.2f} {unit}"
