"""Finding, opening and initializing a repository."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .._sys import files, verity
from ..digest import Algorithm
from ..errors import (
    AlgorithmMismatchError,
    ComposefsError,
    MetadataError,
    RepositoryInUseError,
    RepositoryNotFoundError,
    VerityMissingError,
    VerityNotSupportedError,
)
from .metadata import MAX_SIZE, ErofsFormats, Metadata
from .state import FILE_MODE, RepoState

__all__ = ["init", "open_path", "system_path", "user_path"]

_META = "meta.json"
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
    path: str | os.PathLike[str], *, algorithm: Algorithm | None = None, timeout: float | None = None
) -> RepoState:
    """Open with a shared lock; secure or insecure as meta.json is protected or not.

    Raises:
        RepositoryNotFoundError, MetadataError, UnsupportedFeatureError, AlgorithmMismatchError
        RepositoryInUseError: somebody holds it exclusively for longer than *timeout* seconds.
    """
    name = os.fspath(path)
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RepositoryNotFoundError(name, (error.strerror or "").lower()) from None
    try:
        if not files.lock(fd, exclusive=False, timeout=timeout):
            raise RepositoryInUseError(name, "opening it")
        content, guarded = _read_metadata(fd, name)
        metadata = Metadata.decode(content, f"{name}/{_META}")
        metadata.check(name, algorithm)
        if guarded not in (None, metadata.algorithm):
            assert guarded is not None
            raise AlgorithmMismatchError(
                f"the fs-verity protection of {name}/{_META}", metadata.algorithm.value, guarded.value
            )
        return RepoState(name, fd, metadata, secure=guarded is not None)
    except BaseException:
        os.close(fd)
        raise


def _read_metadata(fd: int, path: str) -> tuple[bytes, Algorithm | None]:
    """The bytes of meta.json, and the algorithm that fs-verity guards it with, if any."""
    try:
        opened = files.opened(_META, os.O_RDONLY, dir_fd=fd)
        with opened as file:
            content = os.read(file, MAX_SIZE + 1)
            return content, _guard(file, f"{path}/{_META}")
    except FileNotFoundError:
        reason = "there is no meta.json"
        if os.access("objects", os.F_OK, dir_fd=fd):
            reason += ", though objects are there: it was made before meta.json existed and needs an upgrade"
        raise RepositoryNotFoundError(path, reason) from None


def _guard(fd: int, what: str) -> Algorithm | None:
    for algorithm in Algorithm:
        with contextlib.suppress(VerityMissingError, VerityNotSupportedError, ComposefsError):
            verity.measure(fd, algorithm, what)
            return algorithm
    return None


def init(
    path: str | os.PathLike[str],
    *,
    algorithm: Algorithm = Algorithm.SHA512,
    erofs_formats: ErofsFormats | None,
    insecure: bool = False,
    ensure: bool = False,
) -> tuple[RepoState, bool]:
    """Create and open a repository; the flag tells whether it is new.

    An equal repository that exists is opened.  With *ensure* any existing one of that algorithm is.  The new
    meta.json is durable when this returns; a crash before leaves at most an empty directory.

    Raises:
        MetadataError: another repository, or objects of another algorithm, are there.
        VerityNotSupportedError: the file system cannot guard meta.json and *insecure* is not set.
    """
    name = os.fspath(path)
    made = _make_directory(name)
    wanted = Metadata.new(algorithm, erofs_formats)
    try:
        with files.opened(name, os.O_RDONLY | os.O_DIRECTORY) as fd:
            created = not os.access(_META, os.F_OK, dir_fd=fd) and _write_metadata(
                fd, name, wanted, secure=not insecure
            )
    except BaseException:
        if made:
            with contextlib.suppress(OSError):  # not empty: somebody else uses it by now
                os.rmdir(name)
        raise
    state = open_path(name, algorithm=algorithm if ensure else None)
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
    if found != wanted and not (found.formats == wanted.formats and found.algorithm is wanted.algorithm):
        raise MetadataError(
            state.path,
            "repository already initialized with different configuration "
            f"({_describe(found)}); cannot re-initialize with ({_describe(wanted)})",
        )
    if secure and not state.secure:
        raise MetadataError(state.path, "repository already initialized as insecure; it cannot be made secure by init")


def _describe(metadata: Metadata) -> str:
    return f"algorithm: {metadata.algorithm.text}, erofs_version: V{metadata.formats.default}"


def _write_metadata(fd: int, path: str, metadata: Metadata, *, secure: bool) -> bool:
    """Publish meta.json; False if somebody else was first."""
    _refuse_foreign_objects(fd, path, metadata.algorithm)
    what = f"{path}/{_META}"
    tmpfile = files.Tmpfile.create(".", FILE_MODE, dir_fd=fd)
    try:
        files.write_all(tmpfile.fd, metadata.encode())
        os.fsync(tmpfile.fd)
        if secure:
            tmpfile.make_read_only()
            verity.enable(tmpfile.fd, metadata.algorithm, what)
        try:
            tmpfile.link(_META, dir_fd=fd)
        except FileExistsError:
            return False
        os.fsync(fd)
    finally:
        tmpfile.discard()
    return True


def _refuse_foreign_objects(fd: int, path: str, algorithm: Algorithm) -> None:
    """An old repository without meta.json must not get one that makes all its objects' names invalid."""
    found = _objects_algorithm(fd)
    if found not in (None, algorithm):
        assert found is not None
        raise MetadataError(path, f"its objects are named by {found.value}; initialize it with {found.text}")


def _objects_algorithm(fd: int) -> Algorithm | None:
    lengths = {2 * known.digest_size - 2: known for known in Algorithm}
    with contextlib.suppress(FileNotFoundError), files.opened("objects", os.O_RDONLY, dir_fd=fd) as objects:
        for shard in os.listdir(objects):
            if len(shard) == 2:
                with files.opened(shard, os.O_RDONLY, dir_fd=objects) as directory:
                    for name in os.listdir(directory):
                        if len(name) in lengths:
                            return lengths[len(name)]
    return None
