"""The tar of a layer, made of a directory or of a few files, piece by piece; the same tree makes the same bytes.

Entries are sorted by bytes, each directory before what is in it; owners are numbers; times are whole seconds, none
later than a limit; a second name of a file is a hard link to the first in the order of the entries. PAX headers
appear only where ustar has no room. Sockets are left out. Everything blocks.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

from ...errors import OciError

__all__ = ["LayerTar", "TreeOptions", "file_tar", "tree_tar"]

Xattrs: TypeAlias = Literal["keep", "none"]
_BLOCK = 512
_PIECE = 1 << 20
_LOCAL = ("security.selinux", "user.containers.override_stat")
_LOCAL_PREFIXES = ("trusted.overlay.", "user.overlay.")
"""What belongs to this machine, and not to the tree."""


@dataclass(frozen=True, slots=True)
class TreeOptions:
    """How a directory becomes a layer."""

    at: str = "/"
    """Where it goes in the image."""
    owner: tuple[int, int] | None = None
    """Of everything; the real ones if not given."""
    exclude: Sequence[str] = ()
    """Patterns of paths in the directory, as in shells; what is below one that matches is left out, too."""
    xattrs: Xattrs = "keep"
    """``keep`` all but those that belong to this machine, or ``none``."""
    latest: int | None = None
    """Times after this one are set to it, in seconds since 1970."""


class LayerTar:
    """Pieces of a tar in the form of `BlockingBlob.readinto`."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, memoryview(b"")

    def readinto(self, view: memoryview) -> int:
        """Put the next bytes at the front of *view*; returns how many, 0 at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        size = min(len(self._rest), len(view))
        view[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def tree_tar(directory: str | os.PathLike[str], options: TreeOptions) -> Iterator[bytes]:
    """The tar of a directory's content.

    Raises:
        OciError: it changed while it was read.
        OSError: something cannot be read.
    """
    root, at = os.fspath(directory), options.at.strip("/")
    first: dict[tuple[int, int], str] = {}
    yield from _parents(at, options)
    for path in _walk(root, options):
        status = os.lstat(f"{root}/{path}" if path else root)
        if stat.S_ISSOCK(status.st_mode):
            continue
        name = "/".join(filter(None, (at, path)))
        if not name:
            continue
        yield from _entry(f"{root}/{path}" if path else root, name, status, options, first)
    yield bytes(2 * _BLOCK)


def _parents(at: str, options: TreeOptions) -> Iterator[bytes]:
    """The directories above the place where a tree goes."""
    parts = at.split("/")[:-1] if at else []
    for end in range(1, len(parts) + 1):
        info = _info("/".join(parts[:end]), 0o755, options.owner or (0, 0), options.latest or 0)
        info.type = tarfile.DIRTYPE
        yield _header(info)


def _walk(root: str, options: TreeOptions) -> Iterator[str]:
    """Paths below *root*, sorted by bytes, the directory itself first."""
    pending = [""]
    while pending:
        path = pending.pop()
        yield path
        full = f"{root}/{path}" if path else root
        if not os.path.islink(full) and os.path.isdir(full):
            names = sorted(os.listdir(full), key=os.fsencode, reverse=True)
            below = [f"{path}/{name}" if path else name for name in names]
            pending += [each for each in below if not any(fnmatchcase(each, pattern) for pattern in options.exclude)]


def _info(name: str, mode: int, owner: tuple[int, int], mtime: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode, (info.uid, info.gid), info.mtime = mode, owner, mtime
    return info


def _entry(
    path: str, name: str, status: os.stat_result, options: TreeOptions, first: dict[tuple[int, int], str]
) -> Iterator[bytes]:
    mtime = status.st_mtime_ns // 1_000_000_000
    if options.latest is not None:
        mtime = min(mtime, options.latest)
    owner = options.owner or (status.st_uid, status.st_gid)
    info = _info(name, stat.S_IMODE(status.st_mode), owner, max(mtime, 0))
    if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
        known = first.setdefault((status.st_dev, status.st_ino), name)
        if known != name:
            info.type, info.linkname = tarfile.LNKTYPE, known
            yield _header(info)
            return
    xattrs = _xattrs(path) if options.xattrs == "keep" else {}
    if stat.S_ISREG(status.st_mode):
        info.size = status.st_size
        yield _header(info, xattrs)
        yield from _content(path, status)
        return
    if stat.S_ISDIR(status.st_mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(status.st_mode):
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, os.readlink(path), 0o777
    elif stat.S_ISFIFO(status.st_mode):
        info.type = tarfile.FIFOTYPE
    else:
        info.type = tarfile.CHRTYPE if stat.S_ISCHR(status.st_mode) else tarfile.BLKTYPE
        info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    yield _header(info, xattrs)


def _header(info: tarfile.TarInfo, xattrs: Mapping[str, bytes] | None = None) -> bytes:
    """The header of an entry, behind one of PAX if there is something that ustar has no room for."""
    header = info.tobuf(tarfile.PAX_FORMAT, errors="surrogateescape")
    if not xattrs:
        return header
    records = b""
    if header[156:157] == tarfile.XHDTYPE:
        size = int(header[124:135], 8)
        records, header = header[_BLOCK : _BLOCK + size], header[_BLOCK + size + -size % _BLOCK :]
    records += b"".join(_record(f"SCHILY.xattr.{name}".encode(), value) for name, value in sorted(xattrs.items()))
    extension = tarfile.TarInfo("././@PaxHeader")
    extension.type, extension.size = tarfile.XHDTYPE, len(records)
    return extension.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % _BLOCK) + header


def _record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body)
    while len(b"%d" % length) + len(body) != length:
        length = len(b"%d" % length) + len(body)
    return b"%d" % length + body


def _xattrs(path: str) -> dict[str, bytes]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:
        return {}
    kept = [name for name in names if name not in _LOCAL and not name.startswith(_LOCAL_PREFIXES)]
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in kept}


def _content(path: str, status: os.stat_result) -> Iterator[bytes]:
    left = status.st_size
    with open(path, "rb", buffering=0) as file:
        while left:
            piece = file.read(min(_PIECE, left))
            if not piece:
                raise OciError(path, "it has become shorter while it was read")
            left -= len(piece)
            yield piece
    if status.st_size % _BLOCK:
        yield bytes(-status.st_size % _BLOCK)


def file_tar(files: Mapping[str, bytes], *, mode: int, mtime: int, whiteouts: Sequence[str] = ()) -> Iterator[bytes]:
    """The tar of a few files, given with their content, and of marks that remove what lower layers have.

    Args:
        files: content by path.
        whiteouts: paths that are removed.
    """
    contents = {path.strip("/"): content for path, content in files.items()}
    for path in whiteouts:
        parent, _, name = path.strip("/").rpartition("/")
        contents["/".join(filter(None, (parent, f".wh.{name}")))] = b""
    for name in contents:
        if not name or any(part in ("", ".", "..") for part in name.split("/")):
            raise OciError("layer", f"{name!r} is no path of a file")
    seen: set[str] = set()
    for name in sorted(contents, key=os.fsencode):
        parts = name.split("/")[:-1]
        for end in range(1, len(parts) + 1):
            parent = "/".join(parts[:end])
            if parent not in seen and not name.rpartition("/")[2].startswith(".wh."):
                seen.add(parent)
                info = _info(parent, 0o755, (0, 0), mtime)
                info.type = tarfile.DIRTYPE
                yield _header(info)
        info = _info(name, mode, (0, 0), mtime)
        info.size = len(contents[name])
        yield _header(info) + contents[name] + bytes(-info.size % _BLOCK)
    yield bytes(2 * _BLOCK)
