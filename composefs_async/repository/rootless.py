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
from ..errors import MountError
from .opening import OpenRepository, Path

if TYPE_CHECKING:
    from .._repo.rootless import RootlessMount

__all__ = ["RootlessOperations"]

_REPORT_LIMIT = 1 << 16


class RootlessOperations(OpenRepository):
    """Mounting images as anybody."""

    def enter_rootless(
        self,
        name: str,
        *,
        mountpoint: Path | None = None,
        upper: Path | None = None,
        work: Path | None = None,
        read_write: bool = False,
    ) -> RootlessMount:
        """Move this process into new namespaces of users and mounts, and mount the image *name* there.

        For a process with one thread that is about to become something else: it is root of its namespace afterwards,
        nobody else sees the mount, and there is no way back.  The mount's root becomes the working directory.  Needs
        no privileges, no FUSE and no process that stays; blocks for some 50 µs for each inode.  The image's digest is
        verified here before it is believed, since no kernel looks at it.

        Args:
            mountpoint: a directory; by default one of this user's, below that for temporary files.
            upper, work: directories for changes, on one file system that has attributes of users.
            read_write: allow changes; they go to *upper*.

        Raises:
            MountError: the system or its kernel cannot do it, with what would help.
            ImageNotFoundError, IntegrityError, ErofsError
        """
        from .._repo import rootless

        return rootless.enter_rootless(
            self._state, name, mountpoint=mountpoint, upper=upper, work=work, read_write=read_write
        )

    def run_rootless(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        upper: Path | None = None,
        work: Path | None = None,
        read_write: bool = False,
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
        with _reported(name) as report:
            arguments = self._arguments(name, command, report, environment, (upper, work, read_write))
            return subprocess.run(arguments, pass_fds=(report,), check=False).returncode

    async def run_rootless_async(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        upper: Path | None = None,
        work: Path | None = None,
        read_write: bool = False,
    ) -> int:
        """Run a command in a rootless mount; a cancellation kills it.  See `run_rootless`."""
        await hop(self._find, name)
        with _reported(name) as report:
            arguments = self._arguments(name, command, report, environment, (upper, work, read_write))
            done = await anyio.run_process(
                arguments, stdin=None, stdout=None, stderr=None, check=False, pass_fds=(report,)
            )
            return done.returncode

    def _find(self, name: str) -> None:
        from .._repo import rootless

        rootless.require_image(self._state, name)

    def _arguments(
        self,
        name: str,
        command: Sequence[str],
        report: int,
        environment: Mapping[str, str] | None,
        writable: tuple[Path | None, Path | None, bool],
    ) -> list[str]:
        if not command:
            raise ValueError("there is no command")
        upper, work, read_write = writable
        wanted = {
            "path": os.readlink(f"/proc/self/fd/{self._state.fd}"),
            "algorithm": self.algorithm.value,
            "secure": self.secure,
            "name": name,
            "mountpoint": None,
            "upper": None if upper is None else os.path.abspath(upper),
            "work": None if work is None else os.path.abspath(work),
            "read_write": read_write,
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
