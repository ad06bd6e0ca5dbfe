"""Unpacks the blobs of layers: gzip of many members, zstd of many frames, or nothing at all.

Owns the unpacking into a buffer of the caller's, and the limits that stop a bomb.  It does not own which media type
means which compression (`documents`), where packed bytes come from or what the unpacked ones mean; it opens nothing
and waits for nothing.  All input is untrusted; memory is bounded by the caller's piece of input, one
MiB of output and, for zstd, a window of at most `MAX_WINDOW`, or what the caller allows.

A loop around it::

    unpacker = decompressor(Compression.GZIP)
    for piece in pieces:
        unpacker.feed(piece)
        while filled := unpacker.read_into(buffer):
            use(buffer[:filled])
    unpacker.finish()
"""

from __future__ import annotations

import abc
import enum
from typing import TYPE_CHECKING, cast

from zlib_ng import zlib_ng

from ..._zstd import zstd
from ...errors import CompressionError
from ..documents import layer_compression
from ..tar.fields import byte_sum, number

if TYPE_CHECKING:
    from zlib_ng.zlib_ng import _Decompress

__all__ = [
    "HEAD_SIZE",
    "MAX_RATIO",
    "MAX_SIZE",
    "MAX_WINDOW",
    "RATIO_FROM",
    "Compression",
    "Decompressor",
    "begins_tar",
    "decompressor",
    "detect",
    "for_media_type",
]

MAX_SIZE = 1 << 40
"""The default limit of what one blob unpacks to, in bytes."""
MAX_RATIO = 1000.0
"""The default limit of unpacked to packed bytes.  Real layers stay below 100; nothing but zeros has more."""
MAX_WINDOW = 512 << 20
"""The default limit of a zstd window, in bytes: that of the decoder of podman and Docker (klauspost/compress)."""
RATIO_FROM = 64 << 20
"""The ratio is not judged before this many unpacked bytes, which fit anywhere."""

_WINDOW_LOGS = 10, 31  # all that zstd can be told (zstd.h, ZSTD_WINDOWLOG_MIN and ZSTD_WINDOWLOG_MAX)
# What zstd says (error_private.c); its numbers do not come through.
_TOO_LARGE, _NO_MEMORY = "Frame requires too much memory for decoding", "not enough memory"
_OUTPUT = 512 << 10
# A member's end costs a copy of the input behind it: begin small, for archives of many small members.
_FIRST_SLICE, _SLICE = 4 << 10, 512 << 10
_USTAR = 257  # where a tar header has its magic (POSIX, pax)
HEAD_SIZE = 512
"""Bytes that `detect` looks at."""
_UNSUPPORTED = ((b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"))
_GZIP = 16 + 15  # wbits of zlib: gzip header and trailer with CRC, any window
_ZLIB_ERROR = cast("type[Exception]", zlib_ng.error)  # declared as an instance there


class Compression(enum.Enum):
    """How the tar of a layer is packed."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"


def for_media_type(media_type: str) -> Compression | None:
    """How layers of *media_type* are packed; None if they are no tar archives."""
    name = layer_compression(media_type)
    return None if name is None else Compression(name)


def detect(head: bytes | memoryview, claimed: Compression | None = None) -> Compression:
    """How a blob is packed, by its first bytes: give `HEAD_SIZE` of them, or all.  No bytes at all are an empty tar.

    Args:
        claimed: what its media type says.  It is not believed, but without it whatever is unknown is taken for a tar.

    Raises:
        CompressionError: it is packed in a way that is not supported, or *claimed* is given and it looks like nothing
            that a layer can be.
    """
    head = bytes(head[:HEAD_SIZE])
    if begins_tar(head):  # whatever the name of its first member begins with
        return Compression.NONE
    if head.startswith(b"\x1f\x8b"):
        return Compression.GZIP
    # RFC 8878: a frame, or a skippable frame
    if head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):
        return Compression.ZSTD
    for magic, name in _UNSUPPORTED:
        if head.startswith(magic):
            raise CompressionError(f"it is packed with {name}, which is not supported", 0)
    if claimed is not None:
        says = "a plain tar" if claimed is Compression.NONE else claimed.value
        found = head[:8].hex(" ")
        raise CompressionError(f"its media type says {says}, its first bytes {found} are of no tar, gzip or zstd", 0)
    return Compression.NONE


def begins_tar(head: bytes) -> bool:
    """Whether *head*, `HEAD_SIZE` bytes or all, is the beginning of a tar, perhaps of an empty one."""
    if head[_USTAR : _USTAR + 5] == b"ustar" or not any(head):
        return True
    try:  # an archive of before 1988
        return len(head) == HEAD_SIZE and byte_sum(head) - sum(head[148:156]) + 8 * 0x20 == number(head[148:156])
    except ValueError:
        return False


def decompressor(
    compression: Compression,
    *,
    max_size: int = MAX_SIZE,
    max_ratio: float = MAX_RATIO,
    max_window: int = MAX_WINDOW,
) -> Decompressor:
    """A new decompressor for one blob.

    Args:
        max_window: bytes of memory for the window of a zstd frame; counts as the power of two that it reaches.
    """
    if compression is Compression.ZSTD:
        return _Zstd(max_size, max_ratio, max_window)
    return (_Gzip if compression is Compression.GZIP else _Plain)(max_size, max_ratio)


class Decompressor(abc.ABC):
    """Unpacks one blob.  Not for two threads at a time; of no use after it raised."""

    def __init__(self, max_size: int, max_ratio: float) -> None:
        self._max_size, self._max_ratio = max_size, max_ratio
        self._input = memoryview(b"")
        self._at = 0
        self._before = 0  # packed bytes of earlier pieces
        self._produced = 0
        self._given = 0  # of the input that is left, bytes the codec holds and may have used already

    @property
    def consumed(self) -> int:
        """Packed bytes used so far.  An error's offset is that of the block of input it was found in."""
        return self._before + self._at

    @property
    def produced(self) -> int:
        """Unpacked bytes given out so far."""
        return self._produced

    @property
    def needs_input(self) -> bool:
        """The piece of input has been used up, so that `feed` may be called; output may still be had."""
        return self._at == len(self._input)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next piece of packed input, which must not change before it is used up.

        Raises:
            ValueError: the last piece has not been used up.
        """
        if not self.needs_input:
            raise ValueError("there is packed input that has not been read")
        self._before += self._at
        self._input, self._at = memoryview(data), 0

    def read_into(self, view: memoryview) -> int:
        """Unpack into *view* and return how many bytes it now holds; blocks for computation without the GIL.

        Fewer than *view* has room for means that the input is used up: feed more, or `finish`.

        Raises:
            CompressionError: the input is damaged, or unpacks to more than the limits allow.
        """
        filled, room = 0, len(view)
        while filled < room:
            unpacked = self._unpack(min(room - filled, _OUTPUT))
            if unpacked:
                view[filled : filled + len(unpacked)] = unpacked
                filled += len(unpacked)
            elif self.needs_input:
                break
        self._produced += filled
        self._check_limits()
        return filled

    @abc.abstractmethod
    def finish(self) -> None:
        """The input has ended; call it when `read_into` has returned 0.

        Raises:
            CompressionError: it ended in the middle.
        """

    @abc.abstractmethod
    def _unpack(self, limit: int) -> bytes | memoryview:
        """At most *limit* bytes.  None at all only if input was used up, or as long as that is being done."""

    def _take(self, size: int) -> memoryview:
        return self._input[self._at : self._at + size]

    def _check_limits(self) -> None:
        if self._produced > self._max_size:
            raise CompressionError(
                f"the limit of {self._max_size} unpacked bytes is exceeded (max_layer_size, --max-layer-size)",
                self.consumed,
            )
        if self._produced > RATIO_FROM and self._produced > self._max_ratio * (self.consumed + self._given):
            raise CompressionError(
                f"the limit of {self._max_ratio:g} unpacked to packed bytes is exceeded (max_ratio, --max-ratio)",
                self.consumed,
            )


class _Plain(Decompressor):
    def _unpack(self, limit: int) -> memoryview:
        found = self._take(limit)
        self._at += len(found)
        return found

    def finish(self) -> None:
        """Any length is whole."""


class _Gzip(Decompressor):
    """RFC 1952.  Zeros behind the last member are passed over, as gzip(1) does; anything else is an error."""

    # decompressobj is the fastest public interface that can be fed: 775 MB/s with pieces of 256 KiB and more,
    # where the reader behind GzipNGFile, which wants to pull, does 830 (120 MB of /usr, -6).

    def __init__(self, max_size: int, max_ratio: float) -> None:
        super().__init__(max_size, max_ratio)
        self._member: _Decompress | None = None
        self._members = 0
        self._slice = _FIRST_SLICE
        self._stopped = False  # the last call was stopped by its limit, so that there may be more without input
        self._padded = False

    def _unpack(self, limit: int) -> bytes:
        if self._member is None:
            if self.needs_input or self._pass_padding():
                return b""
            self._member, self._slice = zlib_ng.decompressobj(wbits=_GZIP), _FIRST_SLICE
        elif self.needs_input and not self._stopped:
            return b""
        given = self._take(self._slice)
        try:
            unpacked = self._member.decompress(given, limit)
        except _ZLIB_ERROR as error:
            raise CompressionError(f"damaged gzip member: {error}", self.consumed) from None
        ended = self._member.eof
        self._at += len(given) - len(self._member.unused_data if ended else self._member.unconsumed_tail)
        self._slice = min(2 * self._slice, _SLICE)
        self._stopped = not ended and len(unpacked) == limit
        if ended:
            self._member = None
            self._members += 1
        return unpacked

    def _pass_padding(self) -> bool:
        if not self._members or (self._input[self._at] == 0x1F and not self._padded):
            return False
        given = bytes(self._take(_SLICE))
        if given.count(0) != len(given):
            raise CompressionError("bytes that are no gzip member follow the last one", self.consumed)
        self._padded = True
        self._at += len(given)
        return True

    def finish(self) -> None:
        if self._member is not None or not self._members:
            raise CompressionError("the gzip input ends too early", self.consumed)


class _Zstd(Decompressor):
    """RFC 8878, with skippable frames, as zstd:chunked has them."""

    def __init__(self, max_size: int, max_ratio: float, max_window: int) -> None:
        super().__init__(max_size, max_ratio)
        self._window_log = min(max(max_window.bit_length() - 1, _WINDOW_LOGS[0]), _WINDOW_LOGS[1])
        self._frame: zstd.ZstdDecompressor | None = None
        self._frames = 0
        self._slice = _FIRST_SLICE

    def _unpack(self, limit: int) -> bytes:
        if self._frame is None:
            if self.needs_input:
                return b""
            options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: self._window_log}
            self._frame, self._slice = zstd.ZstdDecompressor(options=options), _FIRST_SLICE
        given: bytes | memoryview = b""
        if self._frame.needs_input:
            if self.needs_input:
                return b""
            given = self._take(self._slice)
            self._given, self._slice = len(given), min(2 * self._slice, _SLICE)
        try:
            unpacked = self._frame.decompress(given, limit)
        except zstd.ZstdError as error:
            raise self._failure(str(error)) from None
        if self._frame.eof:
            self._at += self._given - len(self._frame.unused_data)
            self._frame, self._given = None, 0
            self._frames += 1
        elif self._frame.needs_input:
            self._at += self._given
            self._given = 0
        return unpacked

    def _failure(self, said: str) -> Exception:
        if _NO_MEMORY in said:
            return MemoryError("not enough memory for the window of a zstd frame")
        if _TOO_LARGE in said:
            limit = 1 << self._window_log
            return CompressionError(
                f"the limit of {limit} bytes for the window of a zstd frame is exceeded (max_window, --max-window)",
                self.consumed,
            )
        return CompressionError(f"damaged zstd frame: {said}", self.consumed)

    def finish(self) -> None:
        if self._frame is not None or not self._frames:
            raise CompressionError("the zstd input ends too early", self.consumed)
