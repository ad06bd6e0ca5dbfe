"""The loggers of the package, ``composefs_async`` and one below it for each room that has something to tell.

DEBUG and INFO tell what an operation did to a repository (what was published, collected, reset), WARNING what deserves
a look although the operation goes on (findings of checks, what a repair could not restore, requests tried again).
Failures are exceptions and are not logged.  Nothing is printed unless the program configures `logging`.
"""

from __future__ import annotations

import logging

__all__ = ["logger"]

# Without a handler Python prints warnings of programs that never asked for them.
logging.getLogger("composefs_async").addHandler(logging.NullHandler())


def logger(room: str) -> logging.Logger:
    """Return the logger ``composefs_async.ROOM``."""
    return logging.getLogger(f"composefs_async.{room}")
