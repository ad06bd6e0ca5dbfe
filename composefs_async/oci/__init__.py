"""OCI images and layers in a composefs repository.

`import_layer` takes one layer from any source of bytes, `pull` a whole image from a reference or any `ImageSource`,
`add_image` makes an image of layers that are there.  What is there then: `catalogue` lists,
opens, tags and untags images, `stored_layers` looks into layers, `ensure_images` makes EROFS images that are missing,
`check` and `repair` look after all of it.  `layout_writer` writes image directories, `ProgressStream` makes an async
iterator of what happens.

All modules here use the public `Repository` and the layers below it; none of them is used from below.

Names are imported from here when they are first used, so that looking into a repository does not wait for the
modules that import and repair.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .._maintenance.repair.sources import ObjectSource
    from .building.builder import ImageBuilder, build_image, edit_config
    from .building.config import ConfigSettings
    from .catalogue import OciImage
    from .contents import index_contents, index_contents_async
    from .documents import Descriptor, ImageConfig, ImageLayer, Manifest
    from .erofs_images import ensure_images, ensure_images_async, image_tree, image_tree_async
    from .exporting.export import CopyResult, export_images
    from .image_repair import repair
    from .importing.add import add_image
    from .importing.layers import LayerResult, import_layer
    from .importing.pull import pull
    from .importing.pull_result import PullResult
    from .importing.unpack import ByteSource, Readable, Receivable
    from .layer_sizes import LayerUsage, ListedObjects, layer_usage, layer_usage_async
    from .limits import Limits
    from .platforms import Platform
    from .progress_stream import ProgressStream
    from .reading import read_file, read_file_async
    from .repository_copy import CopiedImage, copy_image
    from .sources.base import (
        Blob,
        BlockingBlob,
        ImageSource,
        LocalBlob,
        PartialBlob,
        ResolvedImage,
        SpooledBlob,
        StreamedBlob,
    )
    from .sources.opening import open_source

__all__ = [
    "Blob",
    "BlockingBlob",
    "ByteSource",
    "ConfigSettings",
    "CopiedImage",
    "CopyResult",
    "Descriptor",
    "ImageBuilder",
    "ImageConfig",
    "ImageLayer",
    "ImageSource",
    "LayerResult",
    "LayerUsage",
    "Limits",
    "ListedObjects",
    "LocalBlob",
    "Manifest",
    "ObjectSource",
    "OciImage",
    "PartialBlob",
    "Platform",
    "ProgressStream",
    "PullResult",
    "Readable",
    "Receivable",
    "ResolvedImage",
    "SpooledBlob",
    "StreamedBlob",
    "add_image",
    "build_image",
    "copy_image",
    "edit_config",
    "ensure_images",
    "ensure_images_async",
    "export_images",
    "image_tree",
    "image_tree_async",
    "import_layer",
    "index_contents",
    "index_contents_async",
    "layer_usage",
    "layer_usage_async",
    "open_source",
    "pull",
    "read_file",
    "read_file_async",
    "repair",
]

_HOMES = {
    "Blob": ".sources.base",
    "BlockingBlob": ".sources.base",
    "ByteSource": ".importing.unpack",
    "ConfigSettings": ".building.config",
    "CopiedImage": ".repository_copy",
    "CopyResult": ".exporting.export",
    "Descriptor": ".documents",
    "ImageBuilder": ".building.builder",
    "ImageConfig": ".documents",
    "ImageLayer": ".documents",
    "ImageSource": ".sources.base",
    "LayerResult": ".importing.layers",
    "Limits": ".limits",
    "LocalBlob": ".sources.base",
    "PartialBlob": ".sources.base",
    "Manifest": ".documents",
    "ObjectSource": ".._maintenance.repair.sources",
    "OciImage": ".catalogue",
    "Platform": ".platforms",
    "ProgressStream": ".progress_stream",
    "PullResult": ".importing.pull_result",
    "Readable": ".importing.unpack",
    "Receivable": ".importing.unpack",
    "ResolvedImage": ".sources.base",
    "SpooledBlob": ".sources.base",
    "StreamedBlob": ".sources.base",
    "add_image": ".importing.add",
    "build_image": ".building.builder",
    "copy_image": ".repository_copy",
    "edit_config": ".building.builder",
    "ensure_images": ".erofs_images",
    "ensure_images_async": ".erofs_images",
    "export_images": ".exporting.export",
    "image_tree": ".erofs_images",
    "image_tree_async": ".erofs_images",
    "import_layer": ".importing.layers",
    "index_contents": ".contents",
    "index_contents_async": ".contents",
    "open_source": ".sources.opening",
    "pull": ".importing.pull",
    "LayerUsage": ".layer_sizes",
    "ListedObjects": ".layer_sizes",
    "layer_usage": ".layer_sizes",
    "layer_usage_async": ".layer_sizes",
    "read_file": ".reading",
    "read_file_async": ".reading",
    "repair": ".image_repair",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home, __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted(globals() | dict.fromkeys(__all__))
