"""What a repository keeps of a blob besides the layer that it was unpacked to; blocks.

Owns the decision.  Does not own blobs that are kept whole (`oci.kept_blobs`), nor files by their content
(`oci.contents`).
"""

from __future__ import annotations

from ..._repo.state import RepoState
from ...digest import ObjectId
from ..contents import note_layer
from ..documents import ImageLayer
from ..kept_blobs import keep_blob
from ..limits import Limits
from ..sources.base import Blob, LocalBlob, PartialBlob, SpooledBlob

__all__ = ["keep_of_blob"]


def keep_of_blob(
    state: RepoState, layer: ImageLayer, blob: Blob, stream_id: ObjectId, limits: Limits, whole: bool
) -> None:
    """Keep what a later pull or push can use of a blob whose layer has just come.

    Args:
        stream_id: of the layer.
        whole: keep all of it, for a push that is the same to the bit.
    """
    if isinstance(blob, SpooledBlob):
        blob = LocalBlob(blob.fd, blob.size, blob.path)
    digest = layer.descriptor.digest
    if whole and isinstance(blob, LocalBlob) and digest != layer.name:  # what is not packed is in the layer itself
        keep_blob(state, digest, blob.fd, blob.size, blob.offset)
    fetched = blob.fetched if isinstance(blob, PartialBlob) else blob
    if isinstance(fetched, LocalBlob):
        note_layer(state, layer.descriptor, fetched, layer.name, stream_id, limits)
