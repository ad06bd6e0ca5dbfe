"""The compressor settings that every splitstream uses."""

from __future__ import annotations

from .._zstd import zstd

__all__ = ["SectionCompressor"]

_LEVEL = 3  # what level 0, which composefs-rs asks for, stands for


class SectionCompressor:
    """Makes one zstd frame of unknown size, with the bytes that composefs-rs makes by the same libzstd.

    The one-shot form is avoided on purpose: it states the size in the frame header and chooses other
    parameters by it.
    """

    __slots__ = ("_frame",)

    def __init__(self) -> None:
        self._frame = zstd.ZstdCompressor(level=_LEVEL)

    def compress(self, data: memoryview) -> bytes:
        """What can be given out already, often nothing.  How the input is cut does not matter."""
        # An empty first call would start a frame of unknown size, but the empty section has its own form.
        return self._frame.compress(data) if data else b""

    def finish(self) -> bytes:
        return self._frame.flush(zstd.ZstdCompressor.FLUSH_FRAME)
