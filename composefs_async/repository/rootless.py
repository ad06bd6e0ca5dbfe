"""Mounts without privileges: a command in namespaces of its own, in which an image is mounted.

Owns the public form, blocking and not.  Does not own the mount (`_repo.rootless`).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio

from .._aio.hops import hop
from ..digest import ObjectId
from ..errors import MountError
from ..results import MountOptions
from .images import DEFAULT_MOUNT, name_of
from .opening import OpenRepository, Path

if TYPE_CHECKING:
    from .._repo.rootless import RootlessMount

__all__ = ["RootlessOperations"]

_REPORT_LIMIT = 1 << 16


class RootlessOperations(OpenRepository):
    """Mounting images as anybody."""

    def enter_rootless(
        self,
        name: str | ObjectId,
        *,
        mountpoint: Path | None = None,
        options: MountOptions = DEFAULT_MOUNT,
    ) -> RootlessMount:
        """Move this process into new namespaces of users and mounts, and mount the image *name* there.

        For a process with one thread that is about to become something else: it is root of its namespace afterwards,
        nobody else sees the mount, and there is no way back.  The mount's root becomes the working directory.  Needs
        no privileges, no FUSE and no process that stays; blocks for some 50 µs for each inode.  The image's digest is
        verified here before it is believed, since no kernel looks at it.

        Args:
            mountpoint: a directory; by default one of this user's, below that for temporary files.
            options: its directories are on one file system that has attributes of users; it has no idmap.

        Raises:
            MountError: the system or its kernel cannot do it, with what would help.
            ImageNotFoundError, IntegrityError, ErofsError
        """
        from .._repo import rootless

        return rootless.enter_rootless(self._state, name_of(name), mountpoint=mountpoint, options=options)

    def run_rootless(
        self,
        name: str | ObjectId,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        options: MountOptions = DEFAULT_MOUNT,
    ) -> int:
        """Run *command* where the image *name* is mounted, as `enter_rootless` does it, in a process of its own.

        The mount's root is its working directory, and its path in the variable ``COMPOSEFS_MOUNT``.  Blocks until the
        command ends.

        Args:
            environment: of the command, in place of that of this process.

        Returns:
            The exit code; negative for the signal that ended the command.

        Raises:
            MountError: the system or its kernel cannot do it, with what would help.
            ImageNotFoundError: there is no such image.
            OSError: the command cannot be run.
        """
        import subprocess  # which most users of repositories never need

        self._find(name)
        with _reported(name_of(name)) as report:
            arguments = self._arguments(name_of(name), command, report, environment, options)
            return subprocess.run(arguments, pass_fds=(report,), check=False).returncode

    async def run_rootless_async(
        self,
        name: str | ObjectId,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        options: MountOptions = DEFAULT_MOUNT,
    ) -> int:
        """Run a command in a rootless mount; a cancellation kills it.  See `run_rootless`."""
        await hop(self._find, name)
        with _reported(name_of(name)) as report:
            arguments = self._arguments(name_of(name), command, report, environment, options)
            done = await anyio.run_process(
                arguments, stdin=None, stdout=None, stderr=None, check=False, pass_fds=(report,)
            )
            return done.returncode

    def _find(self, name: str | ObjectId) -> None:
        from .._repo import rootless

        rootless.require_image(self._state, name_of(name))

    def _arguments(
        self,
        name: str,
        command: Sequence[str],
        report: int,
        environment: Mapping[str, str] | None,
        options: MountOptions,
    ) -> list[str]:
        if not command:
            raise ValueError("there is no command")
        if options.idmap is not None:
            raise ValueError("a rootless mount has the owners of its own namespace and takes no idmap")
        wanted = {
            "path": os.readlink(f"/proc/self/fd/{self._state.fd}"),
            "algorithm": self.algorithm.value,
            "secure": self.secure,
            "name": name,
            "mountpoint": None,
            "upper": None if options.upper is None else os.path.abspath(options.upper),
            "work": None if options.work is None else os.path.abspath(options.work),
            "read_write": options.read_write,
            "command": list(command),
            "environment": None if environment is None else dict(environment),
            "report": report,
        }
        return [sys.executable, "-P", "-m", "composefs_async._repo.rootless_child", json.dumps(wanted)]


@contextmanager
def _reported(name: str) -> Iterator[int]:
    """A descriptor for a child to say what went wrong; the block's end raises that."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            yield writing
        finally:
            os.close(writing)
        text = os.read(reading, _REPORT_LIMIT)
    finally:
        os.close(reading)
    if not text:
        return
    found = json.loads(text)
    if "what" in found:
        raise MountError(found["errno"], found["what"], found["log"], found["doing"])
    if "errno" in found:
        raise OSError(found["errno"], os.strerror(found["errno"] or 0), found["filename"])
    raise MountError(0, name, found["text"])
