"""EROFS images of composefs: the binary form of a tree, in the layouts of mkcomposefs and composefs-rs.

Owns `format`, the writer (`writer` and what it is made of: `writer_*`, `layout*`) and the readers.  Does not own trees
(`tree`), nor where images are kept (`_repo`).  Nothing here does I/O: images are bytes in memory.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .writer import Dialect, build_image, choose_version, image_pieces

__all__ = ["Dialect", "build_image", "choose_version", "image_pieces"]


def __getattr__(name: str) -> object:
    # The writer is large, and most of what is done with a repository writes no image.
    if name in __all__:
        return getattr(importlib.import_module(".writer", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
