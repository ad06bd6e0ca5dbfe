"""Finding, opening and initializing a repository."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from .._sys import files, locks
from ..digest import Algorithm
from ..errors import MetadataError, RepositoryInUseError, RepositoryNotFoundError
from . import detect, meta_file
from .lifetime import Descriptor
from .metadata import ErofsFormats, Metadata
from .state import RepoState

__all__ = ["init", "load", "locked_directory", "open_path", "system_path", "user_path"]

_REPOSITORY_MODE = 0o700


def user_path() -> str:
    """Where the calling user's repository is: ``$HOME/.var/lib/composefs``."""
    home = os.environ.get("HOME")
    if not home:
        raise RepositoryNotFoundError("~/.var/lib/composefs", "HOME is not set")
    return os.path.join(home, ".var/lib/composefs")


def system_path() -> str:
    """Where the system's repository is."""
    return "/sysroot/composefs"


def open_path(
    path: str | os.PathLike[str],
    *,
    algorithm: Algorithm | None = None,
    timeout: float | None = None,
    check: Callable[[], object] | None = None,
) -> RepoState:
    """Open with a shared lock; secure or insecure as meta.json is protected or not.

    Args:
        check: called now and then while waiting; what it raises ends the wait.

    Raises:
        RepositoryNotFoundError, MetadataError, UnsupportedFeatureError, AlgorithmMismatchError
        RepositoryInUseError: somebody holds it exclusively for longer than *timeout* seconds.
    """
    name = os.fspath(path)
    with locked_directory(name, "opening it", timeout=timeout, check=check) as fd:
        return load(fd, name, algorithm)


@contextlib.contextmanager
def locked_directory(
    path: str,
    operation: str,
    *,
    exclusive: bool = False,
    timeout: float | None = None,
    check: Callable[[], object] | None = None,
) -> Iterator[Descriptor]:
    """A descriptor of the directory *path* with its lock; `load` takes it over, an error gives the lock up.

    Raises:
        RepositoryNotFoundError: there is no such directory.
        RepositoryInUseError: the lock is not to be had within *timeout* seconds.
    """
    try:
        fd = Descriptor(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RepositoryNotFoundError(path, (error.strerror or "").lower()) from None
    try:
        if not locks.lock(fd, exclusive=exclusive, timeout=timeout, check=check):
            raise RepositoryInUseError(path, operation, locks.lock_holders(fd))
        with files.naming(path):
            yield fd
    except BaseException:
        fd.give_up()
        raise


def load(fd: int, path: str, algorithm: Algorithm | None = None) -> RepoState:
    """Open what *fd*, which has the shared lock, stands for; the state owns it when this returns."""
    try:
        metadata, guard = meta_file.read(fd, path)
    except FileNotFoundError:
        reason = "there is no meta.json"
        if os.access("objects", os.F_OK, dir_fd=fd):
            reason += (
                ", though objects are there: it was made before meta.json existed and needs an upgrade "
                "(composefs-async upgrade)"
            )
        raise RepositoryNotFoundError(path, reason) from None
    metadata.check(path, algorithm)
    return RepoState(path, fd, metadata, secure=guard is not None)


def init(
    path: str | os.PathLike[str],
    *,
    algorithm: Algorithm = Algorithm.SHA512,
    erofs_formats: ErofsFormats | None,
    insecure: bool = False,
    ensure: bool = False,
    timeout: float | None = None,
    check: Callable[[], object] | None = None,
) -> tuple[RepoState, bool]:
    """Create and open a repository; the flag tells whether it is new.

    An equal repository that exists is opened.  With *ensure* any existing one of that algorithm is.  The new
    meta.json is durable when this returns; a crash before leaves at most an empty directory.

    Raises:
        MetadataError: another repository, or objects of another algorithm, are there.
        VerityNotSupportedError: the file system cannot guard meta.json and *insecure* is not set.
        VerityMissingError: it would be secure, but objects are there that are not protected.
        RepositoryInUseError: somebody holds it exclusively for longer than *timeout* seconds.
    """
    name = os.fspath(path)
    made = _make_directory(name)
    wanted = Metadata.new(algorithm, erofs_formats)
    try:
        with locked_directory(name, "initializing it", timeout=timeout, check=check) as fd:
            created = not meta_file.exists(fd) and _write_first(fd, name, wanted, secure=not insecure)
            state = load(fd, name, algorithm if ensure else None)
    except BaseException:
        if made:
            with contextlib.suppress(OSError):  # not empty: somebody else uses it by now
                os.rmdir(name)
        raise
    if not (created or ensure):
        with _closing_on_error(state):
            _require_same(state, wanted, secure=not insecure)
    return state, created


@contextlib.contextmanager
def _closing_on_error(state: RepoState) -> Iterator[None]:
    try:
        yield
    except BaseException:
        state.close()
        raise


def _make_directory(path: str) -> bool:
    try:
        os.mkdir(path, _REPOSITORY_MODE)
    except FileExistsError:
        return False
    return True


def _require_same(state: RepoState, wanted: Metadata, *, secure: bool) -> None:
    found = state.metadata
    if (found.formats, found.algorithm) != (wanted.formats, wanted.algorithm):
        raise MetadataError(
            state.path,
            "repository already initialized with different configuration "
            f"({_describe(found)}); cannot re-initialize with ({_describe(wanted)})",
        )
    if secure and not state.secure:
        raise MetadataError(state.path, "repository already initialized as insecure; it cannot be made secure by init")


def _describe(metadata: Metadata) -> str:
    return f"algorithm: {metadata.algorithm.text}, erofs_version: V{metadata.formats.default}"


def _write_first(fd: int, path: str, metadata: Metadata, *, secure: bool) -> bool:
    """Write meta.json; False if somebody else was first."""
    if detect.has_names(fd) and not meta_file.exists(fd):
        raise MetadataError(
            path,
            "it was made before meta.json existed; 'composefs-async upgrade' keeps its streams and images, "
            "'init --reset-metadata' forgets them",
        )
    detect.require_fitting(fd, path, metadata.algorithm, secure=secure)
    return meta_file.write(fd, path, metadata, secure=secure)
