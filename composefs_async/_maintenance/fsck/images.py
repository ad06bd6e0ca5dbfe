"""Checks of images: each is parsed with every check, and the objects of its files are looked for."""

from __future__ import annotations

import os
import stat

from ..._repo.state import RepoState
from ...digest import ObjectId
from ...erofs.reader.tree import IMAGE_LIMIT
from ...erofs.references import image_object_ids
from ...errors import ErofsError, FormatError
from .context import Run, os_text, raise_ours
from .links import open_entry
from .object_reader import sizes
from .objects import object_not_found
from .streams import Needed

__all__ = ["check_image", "check_needed_image"]


def check_image(run: Run, name: str) -> ObjectId | None:
    """Check ``images/NAME``; returns its id if what it leads to could be opened."""
    path = f"images/{name}"
    opened = open_entry(run, "images", name)
    if opened is None:
        return None
    fd, target = opened
    try:
        object_id = _check_name(run, path, name, target)
        try:
            content = _read(run.state, fd)
        except OSError as error:
            raise_ours(error, path)
            cause = os_text(error)
            run.failed("image-read-failed", path, error, detail=f"Reading {path}", cause=cause)
            return object_id
        except ErofsError as error:
            run.found("image-invalid", path, detail=f"Invalid image: {error}")
            return object_id
    finally:
        os.close(fd)
    run.pace(len(content))
    try:
        ids = image_object_ids(content, run.state.algorithm)
    except ErofsError as error:
        run.found("image-invalid", path, detail=f"Invalid image: {error}")
        return object_id
    _check_objects(run, path, ids)
    return object_id


def _check_name(run: Run, path: str, name: str, target: str) -> ObjectId | None:
    try:
        found = ObjectId.from_path(target)
    except FormatError:
        return None  # which is a finding already
    if found.hex() != name:
        run.found("image-name-mismatch", path, object_id=found)
    return found


def check_needed_image(run: Run, needed: Needed) -> None:
    """Check an image that only a reference of a stream leads to."""
    try:
        with run.state.opened_object_file(needed.object_id.path, os.O_RDONLY | os.O_NONBLOCK) as fd:
            ids = image_object_ids(_read(run.state, fd), run.state.algorithm)
    except FileNotFoundError:
        return  # a finding of the stream
    except OSError as error:
        raise_ours(error, f"objects/{needed.object_id.path}")
        detail, unread = os_text(error), run.unread(error)
    except ErofsError as error:
        detail, unread = str(error), False
    else:
        _check_objects(run, needed.path, ids)
        return
    kind, path = "named-image-invalid", needed.path
    run.found(kind, path, object_id=needed.object_id, name=needed.name, detail=detail, unread=unread)


def _read(state: RepoState, fd: int) -> bytes:
    """All of an image, or enough of it to see that it is too long."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise ErofsError("no regular file", 0)
    left, pieces = min(status.st_size, IMAGE_LIMIT + 1), list[bytes]()
    while piece := os.pread(fd, left, sum(map(len, pieces))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _check_objects(run: Run, path: str, ids: list[ObjectId]) -> None:
    for object_id, size in zip(ids, sizes(run.state, b"".join(ids)), strict=True):
        if size < 0:
            object_not_found(run, "image-missing-object", path, object_id)
