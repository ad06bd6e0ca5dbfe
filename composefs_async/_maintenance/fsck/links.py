"""Checks of names: links of the first level, references, and what was left over.

Owns what a link must look like.  Does not own what links lead to.
"""

from __future__ import annotations

import errno
import os
import re
import stat

from ..._repo import publish
from ..._repo.state import RepoState
from ..._repo.walk import Category, walk_links
from ..._sys import files
from ..._sys.beneath import open_beneath, opened_beneath
from ...digest import ObjectId
from ...errors import FormatError
from .context import Run, file_type, os_text, raise_ours

__all__ = ["check_leftovers", "check_references", "linked", "listing", "open_entry"]

_LEFTOVER = re.compile(rf"(?:\.symlink-|{re.escape(files.TMPFILE_PREFIX)}).*", re.DOTALL)


def listing(run: Run, category: Category) -> list[str]:
    """Sorted names of the first level, ``refs`` excepted."""
    try:
        with opened_beneath(category, os.O_RDONLY | os.O_DIRECTORY, dir_fd=run.state.fd) as fd:
            return sorted(name for name in os.listdir(fd) if name != "refs")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise_ours(error, category)
        _wrong_type(run, category, error)
        return []


def _wrong_type(run: Run, path: str, error: OSError) -> None:
    """A directory that is none, or that cannot be read."""
    try:
        mode = os.stat(path, dir_fd=run.state.fd, follow_symlinks=False).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return  # nothing is there; or the directory above is none, which is a finding already
    except OSError as later:
        run.failed("stat-failed", path, later, detail=os_text(later))
        return
    if stat.S_ISDIR(mode):
        run.failed("stat-failed", path, error, detail=os_text(error))
    else:
        run.found("unexpected-file-type", path, detail=file_type(mode))


def linked(state: RepoState, category: Category, entries: list[str]) -> dict[str, ObjectId]:
    """Names of the first level, and the objects that they lead to, whether these are there or not."""
    found = ((name, publish.object_of(state, category, name)) for name in entries)
    return {name: object_id for name, object_id in found if object_id is not None}


def open_entry(run: Run, category: Category, name: str) -> tuple[int, str] | None:
    """A descriptor that the caller closes of what a link of the first level leads to, and its target.

    None if the link is so damaged that there is none, which is among the findings then.
    """
    path, state = f"{category}/{name}", run.state
    try:
        if not stat.S_ISLNK(os.stat(path, dir_fd=state.fd, follow_symlinks=False).st_mode):
            run.found("entry-not-symlink", path)
            return None
        target = os.readlink(path, dir_fd=state.fd)
        state.follow(path)
    except FileNotFoundError:
        run.found("broken-symlink", path)
        return None
    except OSError as error:
        raise_ours(error, path)
        run.failed("stat-failed", path, error, detail=os_text(error))
        return None
    _check_target(run, path, target)
    try:
        return _open_target(state, category, target), target
    except OSError as error:
        raise_ours(error, path)
        cause = os_text(error)
        if category == "images":
            run.failed("image-open-failed", path, error, detail=cause)
        else:
            run.failed("stream-open-failed", path, error, detail=f"Opening stream '{name}'", cause=cause)
        return None


def _open_target(state: RepoState, category: Category, target: str) -> int:
    """Open an object, or whatever else is in the repository: what is outside may be anybody's, or a device."""
    flags = os.O_RDONLY | os.O_NONBLOCK
    try:
        return state.open_object_file(ObjectId.from_path(target).path, flags)
    except FormatError:
        return open_beneath(os.path.normpath(f"{category}/{target}"), flags, dir_fd=state.fd)


def _check_target(run: Run, path: str, target: str) -> None:
    expected = f"../objects/XX/{'…'}"
    try:
        object_id = ObjectId.from_path(target)
        expected = f"../objects/{object_id.path}"
        if object_id.algorithm is run.state.algorithm and target == expected:
            return
    except FormatError:
        pass
    run.found("link-target-invalid", path, detail=target, expected=expected)


# -- references --------------------------------------------------------------------------------


def check_references(run: Run, category: Category) -> None:
    """Whether each link below ``refs/`` leads to a name of the first level that leads to something."""
    for entry in walk_links(run.state, f"{category}/refs"):
        if entry.error is not None:
            raise_ours(entry.error, entry.path)
            if not entry.in_directory:
                run.failed("stat-failed", entry.path, entry.error, detail=os_text(entry.error))
            elif entry.error.errno != errno.ENOENT:
                _wrong_type(run, entry.path, entry.error)
        elif entry.target is None:
            run.found("unexpected-file-type", entry.path, detail=file_type(entry.mode))
        else:
            _check_reference(run, category, entry.path, entry.target)


def _check_reference(run: Run, category: Category, path: str, target: str) -> None:
    try:
        run.state.follow(path)
    except FileNotFoundError:
        if os.access(path, os.F_OK, dir_fd=run.state.fd, follow_symlinks=False):  # not removed meanwhile
            run.found("broken-symlink", path)
        return
    except OSError as error:
        raise_ours(error, path)
        run.failed("stat-failed", path, error, detail=os_text(error))
        return
    climb = "../" * (path.count("/") - 1)
    expected = climb + publish.entry_of(run.state, category, target)
    if target != expected or "/" in target.removeprefix(climb):
        run.found("link-target-invalid", path, detail=target, expected=expected)


# -- leftovers ---------------------------------------------------------------------------------


def check_leftovers(run: Run) -> None:
    """What interrupted operations have left in the repository's directory."""
    with files.opened(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=run.state.fd) as fd:
        for name in sorted(os.listdir(fd)):
            if _LEFTOVER.fullmatch(name):
                run.found("leftover", name)
