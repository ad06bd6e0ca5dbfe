"""The native module.  What takes more than a moment gives the interpreter lock away; buffers must not change meanwhile.

*algorithm* is the number of fs-verity (`Algorithm.number`), *implementation* one of `implementations`, by default
the first.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from typing_extensions import Buffer

_Entry = TypeVar("_Entry")

def implementations(algorithm: int, /) -> tuple[str, ...]: ...
def hash_blocks(data: Buffer, algorithm: int, implementation: str | None = None, /) -> bytes:
    """Concatenated hashes of the 4096-byte blocks of *data*, the last one as if zeros followed."""

def digest_many(items: Sequence[Buffer], algorithm: int, implementation: str | None = None, /) -> bytes:
    """Concatenated fs-verity digests; the blocks of all items are hashed side by side."""

def digest_files(fds: Sequence[int], algorithm: int, /) -> list[bytes | int]:
    """For each file its fs-verity digest, or an errno.  Reads from the beginning and moves no offset.

    Takes about a mebibyte of memory for files of any number and size.  The descriptors stay the caller's.
    """

def store(
    objects_fd: int, items: Sequence[Buffer], algorithm: int, verity: int, tmpfile: bool = True, /
) -> tuple[bytes, bytes, list[tuple[int, int, str]], int]:
    """Store a batch of objects below the directory *objects_fd*, which stays the caller's.  Flushes nothing.

    *verity* is 0 (insecure, never try), 1 (insecure, protect where the file system can) or 2 (secure: what is there
    must measure as its name, and so must what is written).  Without *tmpfile*, or where O_TMPFILE is refused, files
    are written under a temporary name ``XX/.tmp-object-…``.

    Returns:
        The concatenated ids; a byte per item: 0 stored, 1 present, 2 a corrupt one replaced, 255 failed; the failures
        as (index, errno, step); and whether fs-verity is supported: 1, 0, or -1 if nothing called for it.
        One failure does not stop the others, except for errors that all would meet (ENOSPC, EDQUOT, EROFS, EMFILE,
        ENFILE), which are reported for all that follow.  EBADMSG means a measurement that differs from the id.
    """

def sort_ids(ids: Buffer, width: int, /) -> bytes:
    """The ids, which stand one after the other and have *width* bytes each, sorted, each once."""

def compare_shard(
    objects_fd: int, shard: int, ids: Buffer, width: int, since: int, /
) -> tuple[int, int, bytes, bytes, bytes, list[tuple[bytes, int]]]:
    """Compare the directory *shard* of ``objects/`` with the sorted *ids*, and look at each object that is not there.

    Returns:
        An errno, or 0 (also if there is no such directory); how many objects are among the *ids*; the ids of the
        others, and the sizes of these as native 64-bit numbers; the ids of those whose ctime is *since* (in
        nanoseconds) or later; name and mode of what is no object.
    """

def remove_objects(objects_fd: int, ids: Buffer, width: int, /) -> tuple[bytes, int]:
    """Unlink objects in their order, up to an error: for each 1 if it was there, otherwise 0; and an errno, or 0."""

def object_sizes(objects_fd: int, ids: Buffer, algorithm: int, /) -> bytes:
    """A native 64-bit number for each id: the size of the object, or a negative errno, -EINVAL for what is no file."""

def load_objects(
    objects_fd: int, ids: Buffer, buffer: Buffer, algorithm: int, measure: bool, /
) -> tuple[int, bytes, list[tuple[int, int, str, bytes]]]:
    """Read objects one after the other into the writable *buffer*, as many as fit, and compare them with their ids.

    With *measure* the kernel must guard each under its id, too.

    Returns:
        How many were taken, at least one; their sizes as native 64-bit numbers, -1 for one that is not in the buffer;
        and failures as (index, errno or 0, step, digest or nothing).  The steps are ``open``, ``type`` (no regular
        file), ``large`` (it does not fit into the buffer alone), ``read``, ``measure`` (0: by another algorithm), and
        ``digest``, which has what the object is instead.
    """

def merge_chunks(
    objects_fd: int,
    table: Buffer,
    used: Buffer,
    piece: Buffer,
    at: int,
    left: int,
    buffer: Buffer,
    algorithm: int,
    measure: bool,
    /,
) -> tuple[int, int, int, int, int, list[tuple[int, int, str, bytes]]]:
    """Take chunks of a splitstream apart: write inline content and objects, by their ids in *table*, to *buffer*.

    Each object that was read gets a 1 in *used*.  *piece* is a part of the unpacked stream, *at* where to go on in it,
    *left* what is left of an inline chunk there.

    Returns:
        A status; the new *at* and *left*; how much of the buffer is filled; the value of a chunk; and failures as of
        `load_objects`, with indices of *table*.  The status is 0 when the piece is used up but for part of a header,
        1 when no more fits, 2 before an object that does not fit alone, whose index is the value and which counts as
        done, and 3 at a chunk whose value can be neither index nor length.
    """

def merged_size(
    table: Buffer, piece: Buffer, at: int, left: int, sizes: Buffer, algorithm: int, /
) -> tuple[int, int, int, int, int]:
    """Count what `merge_chunks` would merge: (status, at, left, size, value).

    *sizes* are native 64-bit numbers, one an id.
    """

def scan_files(
    fds: Sequence[int],
    names: Sequence[bytes],
    algorithm: int,
    inline_max: int,
    attributes: bool,
    objects_fd: int,
    verity: int,
    /,
) -> tuple[bytes, bytes, bytes, bytes, tuple[int, int, str] | None, int]:
    """Open the regular file of each name in the directory beside it, look at it, read it, look again, and close it.

    Content of more than *inline_max* bytes is digested, and unless *objects_fd* is -1 stored, as `store` does.  Files
    of a mebibyte or more, or of more than 64 KiB with several names, and all that is unusual or an error before
    storing, are left to the caller.  With *attributes* the extended ones are read, too.

    Returns:
        A native ``struct scanned`` (scanning.h) for each name; the concatenated ids; the concatenated contents of the
        other files; attributes, each as two native 32-bit lengths, name, value; the first failure to store as (index
        of the id, errno, step), behind which nothing counts; and whether fs-verity is supported, as of `store`.
    """

def sha256_pair() -> bytearray | None:
    """The state of two SHA-256 streams; None where hashing them in step is no faster than one after the other."""

def sha256_pair_update(state: bytearray, pieces: Sequence[Buffer], other: Buffer, /) -> None:
    """The first stream goes on by all *pieces*, at most 64, the second by *other*."""

def sha256_pair_digests(state: bytearray, /) -> tuple[bytes, bytes]:
    """Digests of both streams so far; more may come."""

def split_members(
    view: Buffer, at: int, inside: int, file_max: int, items: list[tuple[int, int, int]], /
) -> tuple[int, int]:
    """Pass over members of a tar archive from *at* on, up to one that needs a second look or is not here as a whole.

    Appends (0, *inside*, begin) and (1, begin, end) to *items* for the content of each regular file of more than 64
    bytes.  Accepts less than `HeaderParser` does, and only files of at most *file_max* bytes.

    Returns:
        Where to go on, which may be behind the end if padding is missing; and the new *inside*.
    """

def read_members(
    body: list[Any],
    index: int,
    at: int,
    base: int,
    entries: list[Any],
    object_type: type[bytes],
    make: Callable[[type[_Entry], tuple[Any, ...]], _Entry],
    entry_type: type[_Entry],
    types: tuple[Any, Any, Any, Any],
    /,
) -> tuple[int, int, int]:
    """Append the members in the chunks of a layer's splitstream to *entries*, up to one that needs a second look.

    Goes from chunk to chunk of *body*, beginning at *at* in the one at *index*, whose first byte is at *base* in the
    archive; what is of *object_type* stands for content.  *types* are of files, hard links, symlinks and directories.

    Returns:
        *index*, *at* and *base* to go on with; *at* may be behind the end of its chunk, and the chunk behind the last.
    """
