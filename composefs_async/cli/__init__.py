"""The command line ``composefs-async``; everything it does can be done with the public API.

One module for each group of commands, imported when one of them is called, so that ``--help`` is quick.  A link
called ``mkcomposefs`` or ``composefs-info`` to the program is that program, and so is the program with that word first:
neither needs click, whose import takes as long as an image of some thousand files.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from typing import NoReturn

__all__ = ["main"]

_C_PROGRAMS = ("mkcomposefs", "composefs-info")


def main() -> NoReturn:
    """Run the command in `sys.argv` and leave with its exit code."""
    # Trees and layers are many small objects without cycles: look for cycles more rarely than after each 700.
    gc.set_threshold(50_000, 20, 20)
    if sys.stdout is None:  # as it is when the program was started with it closed
        # Whoever prints hears of it from a descriptor that cannot be written, and no other file takes its number.
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8", closefd=False)
    name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
    if name not in _C_PROGRAMS and arguments[:1] and arguments[0] in _C_PROGRAMS:
        name, *arguments = arguments
    code = _program(name)(arguments)
    # Before it ends, the interpreter looks for cycles in all that is alive: twice, and for nothing.
    gc.freeze()
    sys.exit(code)


def _program(name: str) -> Callable[[list[str]], int]:
    match name:
        case "mkcomposefs":
            from .mkcomposefs import main as program
        case "composefs-info":
            from .composefs_info import main as program
        case _:
            from .app import run as program
    return program
