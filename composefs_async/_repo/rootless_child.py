"""The program that becomes a command inside of a rootless mount: ``python -m composefs_async._repo.rootless_child``.

Owns the way from a process with one thread to the command, and telling why it did not get there.  Started by
`composefs_async.repository.rootless`, which gives it one argument, JSON.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from ..digest import Algorithm
from ..errors import MountError
from ..results import MountOptions
from . import opening
from .rootless import enter_rootless

__all__ = ["become", "main"]

MOUNT_VARIABLE = "COMPOSEFS_MOUNT"
"""In the environment of the command: where the mount is."""


def become(command: list[str], mount: str, environment: Mapping[str, str] | None = None) -> NoReturn:
    """Run *command* in the place of this process, with the mount at *mount*.

    Args:
        environment: without it that of this process.

    Raises:
        OSError: it cannot be run; ``filename`` names it.
    """
    try:
        if environment is None:
            os.putenv(MOUNT_VARIABLE, mount)
            os.execvp(command[0], command)
        os.execvpe(command[0], command, {**environment, MOUNT_VARIABLE: mount})
    except OSError as error:
        error.filename = command[0]
        raise


def main(argument: str) -> None:
    """Open the repository, mount, and become the command; what goes wrong is written to a descriptor as JSON."""
    wanted: dict[str, Any] = json.loads(argument)
    report = int(wanted["report"])
    os.set_inheritable(report, False)
    try:
        state = opening.open_path(wanted["path"], algorithm=Algorithm(wanted["algorithm"]))
        state.secure = wanted["secure"]
        found = enter_rootless(
            state,
            wanted["name"],
            mountpoint=wanted["mountpoint"],
            options=MountOptions(wanted["upper"], wanted["work"], wanted["read_write"]),
        )
        state.close()
        become(wanted["command"], found.path, wanted["environment"])
    except Exception as error:
        os.write(report, json.dumps(_told(error)).encode())
        sys.exit(1)


def _told(error: Exception) -> dict[str, object]:
    if isinstance(error, MountError):
        return {"errno": error.errno, "what": error.what, "log": error.log, "doing": error.doing}
    if isinstance(error, OSError):
        return {"errno": error.errno, "filename": os.fspath(error.filename) if error.filename else None}
    return {"text": f"{error}"}


if __name__ == "__main__":
    main(sys.argv[1])
