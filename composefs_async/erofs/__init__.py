"""EROFS images of composefs: the binary form of a tree, in the layouts of mkcomposefs and composefs-rs.

Owns `format`, the writer (`writer` and what it is made of: `writer_*`, `layout*`) and the readers.  Does not own trees
(`tree`), nor where images are kept (`_repo`).  Nothing here does I/O: images are bytes in memory.
"""

from __future__ import annotations

from .writer import Dialect, build_image, choose_version, image_pieces

__all__ = ["Dialect", "build_image", "choose_version", "image_pieces"]
