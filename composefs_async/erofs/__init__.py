"""EROFS images of composefs: the binary form of a tree, in the layouts of mkcomposefs and composefs-rs.

Owns `format`, `layout`, `writer` and the readers.  Does not own trees (`tree`), nor where images are kept
(`_repo`).  Nothing here does I/O: images are bytes in memory.
"""

from __future__ import annotations
