"""OCI images and layers in a composefs repository.

`import_layer` takes one layer from any source of bytes, `pull` a whole image.  All modules here use the public
`Repository` and the layers below it; none of them is used from below.
"""

from __future__ import annotations

from .images import ensure_images, ensure_images_async, image_tree, image_tree_async
from .layers import LayerResult, import_layer
from .limits import Limits
from .platforms import Platform
from .pull import PullResult, pull
from .repair import repair
from .sources.base import LocalBlob, StreamedBlob
from .unpack import ByteSource

__all__ = [
    "ByteSource",
    "LayerResult",
    "Limits",
    "LocalBlob",
    "Platform",
    "PullResult",
    "StreamedBlob",
    "ensure_images",
    "ensure_images_async",
    "image_tree",
    "image_tree_async",
    "import_layer",
    "pull",
    "repair",
]
