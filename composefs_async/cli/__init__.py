"""The command line ``composefs-async``; everything it does can be done with the public API.

One module for each group of commands, imported when one of them is called, so that ``--help`` is quick.
"""

from __future__ import annotations

import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command in `sys.argv` and leave with its exit code."""
    from .app import run

    sys.exit(run(sys.argv[1:]))
