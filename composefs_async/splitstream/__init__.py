"""Splitstreams: the content of a tar layer, config or manifest, split into inline bytes and objects.

`SplitstreamWriter` and `SplitstreamBuilder` make the bytes of the file, `SplitstreamReader` reads them.  Nothing
here opens files, awaits, or knows a repository: objects go to an `ObjectSink`, files come from a `PositionalSource`.
"""

from __future__ import annotations

from .builder import SplitstreamBuilder
from .format import OCI_BLOB, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Generation, Header, Info, Section, content_type_name
from .protocols import Buffer, BytesSource, ObjectHandle, ObjectSink, PositionalSource
from .reader import SplitstreamReader
from .sections import ObjectIds
from .writer import PendingReference, SplitstreamWriter

__all__ = [
    "OCI_BLOB",
    "OCI_CONFIG",
    "OCI_LAYER",
    "OCI_MANIFEST",
    "Buffer",
    "BytesSource",
    "Generation",
    "Header",
    "Info",
    "ObjectHandle",
    "ObjectIds",
    "ObjectSink",
    "PendingReference",
    "PositionalSource",
    "Section",
    "SplitstreamBuilder",
    "SplitstreamReader",
    "SplitstreamWriter",
    "content_type_name",
]
