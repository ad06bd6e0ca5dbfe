"""How the programs print: bytes, errors, and text of whatever origin.

Needs nothing but Python, so that it is quick; tables alone need Rich.

Everything that came from outside passes through `printable` or `context.print_json` on its way to a terminal: a tag,
or the architecture in somebody's config, may contain escape sequences.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

__all__ = ["drop_output", "print_bytes", "printable", "say", "table"]

_OUTPUT = "standard output"


def print_bytes(pieces: Iterable[bytes]) -> None:
    """Write to standard output, byte for byte."""
    out = sys.stdout.buffer
    for piece in pieces:
        with _writing():
            out.write(piece)
    with _writing():
        out.flush()


def drop_output() -> None:
    """Nobody gets what is still in the buffer of standard output: it could not be written, or is half of it."""
    with suppress(OSError, ValueError, AttributeError):
        output = sys.stdout.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, output)
        os.close(null)


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        drop_output()
        error.filename = _OUTPUT
        raise


def printable(text: str) -> str:
    """*text* for one line on a terminal: whatever is not printable as an escape of Python's."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def say(text: str) -> None:
    """Write a line to standard error, if there is one that can be written."""
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return lines that draw *rows* as cfsctl does, of which the first has the titles; cells are made printable."""
    from rich.cells import cell_len

    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]

    def ruler(left: str, line: str, middle: str, right: str) -> str:
        return left + middle.join(line * (width + 2) for width in widths) + right

    def drawn(row: list[str]) -> str:
        padded = (f" {cell}{' ' * (width - cell_len(cell))} " for cell, width in zip(row, widths, strict=True))
        return f"│{'┆'.join(padded)}│"

    title, *others = map(drawn, cells)
    between = f"\n{ruler('├', '╌', '┼', '┤')}\n"
    head = [ruler("┌", "─", "┬", "┐"), title, ruler("╞", "═", "╪", "╡")]
    return "\n".join([*head, between.join(others), ruler("└", "─", "┴", "┘")])
