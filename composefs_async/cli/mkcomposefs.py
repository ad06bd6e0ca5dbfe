"""``mkcomposefs``: an image of a directory or of a dump file, with the options and output of the C program.

It is called as a command of ``composefs-async``, or by its own name.  Beyond the C program it has ``--algorithm``
and ``--erofs-version``.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import getopt
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from ..digest import Algorithm
from .compat_options import Leave, complain, parse, parse_algorithm, run_program
from .output import print_bytes

if TYPE_CHECKING:
    from .._repo.scan import ScanOptions
    from ..tree import Directory

__all__ = ["main"]

_OPTIONS: Final = {
    "digest-store=": "PATH   Store content files in this directory",
    "use-epoch": "           Make all mtimes zero",
    "skip-devices": "        Don't store device nodes",
    "skip-xattrs": "         Don't store file xattrs",
    "user-xattrs": "         Only store user.* xattrs",
    "print-digest": "        Print the digest of the image",
    "print-digest-only": "   Print the digest of the image, don't write image",
    "from-file": "           The source is a dump file, not a directory",
    "min-version=": "N       Use this minimal format version (default=0)",
    "max-version=": "N       Use this maximum format version (default=1)",
    "threads=": "N           Use so many threads to read and copy files (default=number of processors)",
    "algorithm=": "NAME      Use sha256 or sha512 (default=sha256)",
    "erofs-version=": "N     Write layout 0, 1 or 2, whatever the other versions are",
}
_USAGE: Final = "Usage: mkcomposefs [OPTIONS] SOURCE IMAGE\nOptions:\n" + "\n".join(
    f"  --{name}{text}" for name, text in _OPTIONS.items()
)


class _Settings:
    """The options, each with what it is when nobody gives it."""

    source: str = ""
    image: str | None = None
    """None: print the digest and write nothing."""
    store: str | None = None
    epoch: bool = False
    devices: bool = True
    xattrs: bool = True
    user_xattrs: bool = False
    print_digest: bool = False
    from_file: bool = False
    minimum: int | None = None
    maximum: int | None = None
    threads: int | None = None
    algorithm: Algorithm = Algorithm.SHA256
    version: int | None = None


def main(arguments: list[str]) -> int:
    """Run the program; returns its exit code."""
    return run_program("mkcomposefs", lambda: _run(_settings(arguments)))


# -- options -----------------------------------------------------------------------------------


def _settings(arguments: list[str]) -> _Settings:
    try:
        options, rest = parse(arguments, [*_OPTIONS, "help"])
    except getopt.GetoptError as error:
        if "requires argument" in error.msg:
            complain("option needs a value")
        complain(f"mkcomposefs: {error.msg}", _USAGE)
    settings = _Settings()
    for name, value in options:
        if name == "help":
            print_bytes([f"{_USAGE}\n".encode()])
            raise Leave(0)
        _take(settings, name, value)
    _take_paths(settings, rest)
    if settings.user_xattrs and not settings.xattrs:
        complain("mkcomposefs: --user-xattrs and --skip-xattrs exclude each other")
    return settings


def _take(settings: _Settings, name: str, value: str) -> None:
    match name:
        case "digest-store":
            settings.store = value
        case "use-epoch":
            settings.epoch = True
        case "skip-devices":
            settings.devices = False
        case "skip-xattrs":
            settings.xattrs = False
        case "user-xattrs":
            settings.user_xattrs = True
        case "print-digest":
            settings.print_digest = True
        case "print-digest-only":
            settings.print_digest, settings.image = True, ""
        case "from-file":
            settings.from_file = True
        case "algorithm":
            settings.algorithm = parse_algorithm(value)
        case _:
            _take_number(settings, name, value)


def _take_number(settings: _Settings, name: str, value: str) -> None:
    number = int(value) if value.isascii() and value.isdigit() and len(value) < 10 else -1
    match name:
        case "min-version":
            settings.minimum = number
        case "max-version":
            settings.maximum = number
        case "threads":
            settings.threads = number
        case _:
            settings.version = number
    if number < 0 or (name == "threads" and number == 0):
        what = "threads count" if name == "threads" else name.replace("-", " ")
        complain(f"Invalid {what} {value}")


def _take_paths(settings: _Settings, paths: list[str]) -> None:
    only_digest = settings.image == ""
    if not paths:
        complain("No source path specified", _USAGE)
    if len(paths) > 2:
        complain("Too many arguments", _USAGE)
    if only_digest and len(paths) > 1:
        complain("Cannot specify destination path with --print-digest-only", _USAGE)
    if not only_digest and len(paths) < 2:
        complain("No destination path specified", _USAGE)
    settings.source, settings.image = paths[0], None if only_digest else paths[1]


# -- work --------------------------------------------------------------------------------------


def _run(settings: _Settings) -> None:
    from ..erofs.writer import Dialect, choose_version, image_pieces

    with _without_collector():
        root = _from_file(settings) if settings.from_file else _scanned(settings)
        version = settings.version
        if version is None:
            version = choose_version(root, settings.minimum, settings.maximum)
        # All of it before any of it is written: there is no file where there is no image.
        pieces = list(image_pieces(root, settings.algorithm, version, dialect=Dialect.C))
        if settings.image is not None:
            _write(pieces, settings.image)
        if settings.print_digest:
            from ..fsverity import digest

            found = digest(b"".join(pieces), settings.algorithm)
            print_bytes([f"{found}\n".encode()])


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """A tree has no cycles, so looking for some in 100,000 inodes only takes time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _from_file(settings: _Settings) -> Directory:
    from ..tree.dumpfile import parse_dump

    if settings.source == "-":
        if sys.stdin is None:  # as it is when the program was started with it closed
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), "standard input")
        return parse_dump(sys.stdin.buffer.read())
    with open(settings.source, "rb") as file:
        return parse_dump(file.read())


def _scanned(settings: _Settings) -> Directory:
    from .._repo.scan import FlatState, scan_and_store, scan_directory

    options = _scan_options(settings)
    if settings.store is None:
        return scan_directory(settings.source, settings.algorithm, options)
    with contextlib.closing(FlatState(settings.store, settings.algorithm)) as state:
        root = scan_and_store(state, settings.source, options)
        # An image must not outlive a power loss that its objects do not.
        state.syncs.sync()
        return root


def _scan_options(settings: _Settings) -> ScanOptions:
    from .._repo.scan import ScanOptions

    return ScanOptions(
        read_xattrs=settings.xattrs,
        keep_xattr=(lambda name: name.startswith(b"user.")) if settings.user_xattrs else None,
        devices=settings.devices,
        use_epoch=settings.epoch,
        hard_links=False,
        threads=settings.threads,
    )


def _write(pieces: list[bytes], path: str) -> None:
    if path == "-":
        print_bytes(pieces)
        return
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666), "wb", 0) as file:
        try:
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    view = view[file.write(view) :]
        except OSError as error:
            error.filename = path
            raise
