"""Repositories from before there was a meta.json: what they are, and giving them one.

Owns deciding and writing meta.json; objects, streams, images and their names stay as they are, since all forms of
them can be read.  Does not own what objects say (`_repo.evidence`), the file (`_repo.meta_file`), or how an image of
January 2026 becomes a current one (`oci.january`).

What is decided, and by what:

* the algorithm by the names of all objects; two kinds are an error.
* secure, if every object is protected by fs-verity.  One that is not makes the repository insecure, as it could not be
  read otherwise; whoever must not have that refuses it with *require_verity*.
* the layouts of EROFS images by what the streams of configs refer to, so that what was made stays in use: 2, if that is
  all there is or there is nothing; 1; or both, of which the more frequent is the default.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from .._repo import detect, meta_file, objects, opening, streams
from .._repo.metadata import ErofsFormats, Metadata
from .._repo.publish import Category
from .._repo.state import RepoState
from .._sys import files
from ..digest import Algorithm, ObjectId
from ..errors import AlgorithmMismatchError, ComposefsError, MetadataError, RepositoryNotFoundError, VerityMissingError
from ..results import UpgradeResult
from ..splitstream.format import HEADER_SIZE, Generation, unpack_header
from . import reachability

__all__ = ["init", "upgrade"]

_IMAGE_REF = "composefs.image"
_OLDEST = "before 2026-01"
_DAMAGED = "damaged"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
"""A stream from before 2026-01 is one zstd frame, without a header."""


def init(
    path: str | os.PathLike[str],
    *,
    algorithm: Algorithm,
    erofs_formats: ErofsFormats | None,
    insecure: bool = False,
    ensure: bool = False,
    timeout: float | None = None,
    check: Callable[[], object] | None = None,
) -> tuple[RepoState, bool]:
    """Make or open a repository; with *ensure* one without meta.json gets the one that fits it, and is not new."""
    if ensure and _is_old(os.fspath(path), timeout, check):
        upgrade(path, algorithm=algorithm, timeout=timeout, check=check)
    return opening.init(
        path,
        algorithm=algorithm,
        erofs_formats=erofs_formats,
        insecure=insecure,
        ensure=ensure,
        timeout=timeout,
        check=check,
    )


def _is_old(path: str, timeout: float | None, check: Callable[[], object] | None) -> bool:
    try:
        with opening.locked_directory(path, "looking at it", timeout=timeout, check=check) as fd:
            found = not meta_file.exists(fd) and (detect.has_names(fd) or bool(detect.count_objects(fd).counts))
        fd.give_up()
    except RepositoryNotFoundError:
        return False
    return found


def upgrade(
    path: str | os.PathLike[str],
    *,
    algorithm: Algorithm | None = None,
    require_verity: bool = False,
    dry_run: bool = False,
    timeout: float | None = None,
    check: Callable[[], object] | None = None,
) -> UpgradeResult:
    """Write the meta.json that fits what is there, unless there is one.  Durable; several may do it at once.

    Blocks for a look at all names of objects, at the protection of each as long as it has any, and at the start of
    each stream.  A crash leaves the repository with its meta.json or without.

    Raises:
        RepositoryNotFoundError: nothing is there.
        MetadataError: it cannot be told what the repository is, or nothing of it can be read any more.
        AlgorithmMismatchError: it is not *algorithm*.
        VerityMissingError: it would be insecure, against *require_verity*.
        ReadOnlyRepositoryError, RepositoryInUseError
    """
    name = os.fspath(path)
    with (
        opening.locked_directory(name, "upgrading it", timeout=timeout, check=check) as fd,
        files.whole_paths(name),
    ):
        found = _present(fd, name)
        decided = found or _decide(fd, name)
    state = RepoState(name, fd, decided[0], secure=decided[1])
    try:
        return _upgrade(state, found is not None, algorithm, require_verity=require_verity, dry_run=dry_run)
    finally:
        state.close()


def _upgrade(
    state: RepoState, present: bool, algorithm: Algorithm | None, *, require_verity: bool, dry_run: bool
) -> UpgradeResult:
    with files.naming(state.path):
        state.metadata.check(state.path, algorithm)
        if require_verity and not state.secure:
            raise VerityMissingError(_unprotected(state))
        known = reachability.roots(state).links
        if present:
            return _result(state, known["streams"], upgraded=False)
        _require_readable(state, known)
        state.metadata = Metadata.new(state.algorithm, _formats(state, known["streams"]))
        return _result(state, known["streams"], upgraded=dry_run or _write(state))


def _present(fd: int, path: str) -> tuple[Metadata, bool] | None:
    try:
        metadata, guard = meta_file.read(fd, path)
    except FileNotFoundError:
        return None
    return metadata, guard is not None


def _decide(fd: int, path: str) -> tuple[Metadata, bool]:
    algorithm = detect.count_objects(fd).algorithm(path)
    if algorithm is None:
        raise RepositoryNotFoundError(path, "there is neither meta.json nor an object to tell what it should say")
    return Metadata.new(algorithm, None), detect.first_unprotected(fd, algorithm) is None


def _unprotected(state: RepoState) -> str:
    found = detect.first_unprotected(state.fd, state.algorithm)
    return f"objects/{found.path}" if found else f"{state.path}/{meta_file.NAME}"


def _write(state: RepoState) -> bool:
    """Write meta.json, or take what somebody else wrote meanwhile if objects can be read by it."""
    state.require_writable()
    if meta_file.write(state.fd, state.path, state.metadata, secure=state.secure):
        return True
    theirs, guard = meta_file.read(state.fd, state.path)
    if theirs.algorithm is not state.algorithm:
        raise AlgorithmMismatchError(
            f"the {meta_file.NAME} that somebody has just written", state.algorithm.value, theirs.algorithm.value
        )
    if guard is not None and not state.secure:
        raise VerityMissingError(_unprotected(state))
    state.metadata, state.secure = theirs, guard is not None
    return False


# -- streams -----------------------------------------------------------------------------------

Streams = Mapping[str, ObjectId]


def _require_readable(state: RepoState, known: Mapping[Category, Streams]) -> None:
    if set(_generations(state, known["streams"])) == {_OLDEST} and not known["images"]:
        raise MetadataError(
            state.path,
            "all its streams were written before 2026-01, in a form that cannot be read; 'init --reset-metadata' "
            "keeps the objects, so that importing the sources again stores little",
        )


def _formats(state: RepoState, known: Streams) -> ErofsFormats:
    kinds = Counter(kind for layouts in _layouts(state, known) for kind in layouts)
    if not kinds[1]:
        return ErofsFormats(2)
    if not kinds[2]:
        return ErofsFormats(1)
    return ErofsFormats(1, (2,)) if kinds[1] >= kinds[2] else ErofsFormats(2, (1,))


def _layouts(state: RepoState, known: Streams) -> Iterator[set[int]]:
    """For each config that can be read: 2 and 1 as it refers to images of these layouts; 1 is also for 0."""
    for name, object_id in known.items():
        if name.startswith("oci-config-"):
            try:
                with streams.open_stream(state, name, object_id) as reader:
                    keys = [key for key in reader.named_refs if key.startswith(_IMAGE_REF)]
            except ComposefsError:
                continue  # for fsck to find
            yield {1 if "v1" in key.split(".") else 2 for key in keys}


def _generations(state: RepoState, known: Streams) -> dict[str, int]:
    """How many streams there are of each form, by the month that it came up in."""
    found = Counter(_generation(state, object_id) for object_id in known.values())
    order = (_OLDEST, *(form.value for form in Generation), _DAMAGED)
    return {form: found[form] for form in order if found[form]}


def _generation(state: RepoState, object_id: ObjectId) -> str:
    try:
        fd = objects.open_object(state, object_id)
    except ComposefsError:
        return _DAMAGED
    try:
        start = os.pread(fd, HEADER_SIZE, 0)
        return _OLDEST if start.startswith(_ZSTD_MAGIC) else unpack_header(start).generation.value
    except ComposefsError:
        return _DAMAGED
    finally:
        os.close(fd)


def _result(state: RepoState, known: Streams, *, upgraded: bool) -> UpgradeResult:
    formats = state.metadata.formats
    default = 2 if formats.default == 2 else 1
    return UpgradeResult(
        upgraded,
        state.metadata.encode() if upgraded else b"",
        state.algorithm,
        state.secure,
        tuple(formats),
        _generations(state, known),
        sum(bool(layouts) and default not in layouts for layouts in _layouts(state, known)),
    )
