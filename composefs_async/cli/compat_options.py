"""Options as getopt_long(3) takes them: anywhere, shortened, with ``=`` or a space before the value.

For the commands that stand in for C programs; all others use click.
"""

from __future__ import annotations

import getopt
import os
from collections.abc import Callable
from typing import NoReturn

from ..digest import Algorithm
from .exit_codes import BROKEN_PIPE, INTERRUPTED, describe
from .output import printable, say

__all__ = ["Leave", "complain", "parse", "parse_algorithm", "run_program"]


class Leave(Exception):  # noqa: N818 - the end of the program, not always an error
    """The end of the program with *code*; what there is to say has been said."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(code)


def run_program(name: str, work: Callable[[], None]) -> int:
    """Do the *work* of the program *name*; returns its exit code, after at most one line for an error."""
    try:
        work()
    except Leave as leaving:
        return leaving.code
    except BrokenPipeError:
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("COMPOSEFS_ASYNC_TRACEBACK"):
            raise
        say(f"{name}: {printable(describe(error))}")
        return 1
    return 0


def parse(arguments: list[str], names: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Pairs of option and value, and what is no option; names with ``=`` take a value.

    Raises:
        getopt.GetoptError
    """
    options, rest = getopt.gnu_getopt(arguments, "", names)
    return [(name.removeprefix("--"), value) for name, value in options], rest


def parse_algorithm(text: str) -> Algorithm:
    """``sha256``, ``sha512``, or as meta.json has it; leaves the program otherwise."""
    try:
        return Algorithm(text) if text in {"sha256", "sha512"} else Algorithm.parse(text)
    except ValueError as error:
        complain(f"Invalid algorithm {text}: {error}")


def complain(text: str, usage: str = "") -> NoReturn:
    """Print *text* and *usage* to standard error and leave, as the C programs do."""
    say(text)
    if usage:
        say(usage)
    raise Leave(1)
