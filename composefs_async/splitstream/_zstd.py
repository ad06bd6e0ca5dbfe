"""Where zstd comes from, and the compressor settings that every splitstream uses; nothing else.

Python 3.14 has the module in its standard library; `backports.zstd` is the same code for older versions.
"""

from __future__ import annotations

import sys

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdCompressor, ZstdDecompressor, ZstdError
else:
    from backports.zstd import ZstdCompressor, ZstdDecompressor, ZstdError

__all__ = ["SectionCompressor", "ZstdDecompressor", "ZstdError"]

_LEVEL = 3  # what level 0, which composefs-rs asks for, stands for


class SectionCompressor:
    """Makes one zstd frame of unknown size, with the bytes that composefs-rs makes by the same libzstd.

    The one-shot form is avoided on purpose: it states the size in the frame header and chooses other
    parameters by it.
    """

    __slots__ = ("_frame",)

    def __init__(self) -> None:
        self._frame = ZstdCompressor(level=_LEVEL)

    def compress(self, data: memoryview) -> bytes:
        """What can be given out already, often nothing.  How the input is cut does not matter."""
        # An empty first call would start a frame of unknown size, but the empty section has its own form.
        return self._frame.compress(data) if data else b""

    def finish(self) -> bytes:
        return self._frame.flush(ZstdCompressor.FLUSH_FRAME)
