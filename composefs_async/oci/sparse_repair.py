"""Where a repair gets the files that sparse members mean: from the streams of the layers that have the members.

Owns finding the members whose files are missing or corrupt, and offering these, made anew.  Does not own how they are
made (`sparse_contents`) nor putting them in place (`composefs_async._maintenance.repair.apply`).

Everything here blocks, and reads the streams of all layers that are whole when something is wanted that an image
refers to; of objects only the data of sparse members.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress

from .._maintenance.repair.apply import Repair
from .._maintenance.repair.stream_names import name_of
from .._repo import streams
from ..digest import ObjectId
from ..errors import ComposefsError
from ..naming import LAYER_STREAMS
from ..splitstream import OCI_LAYER
from .sparse_contents import SparseContents
from .tar.header import INLINE_MAX
from .tar.members import EntryReader, read_batches
from .tar.sparse import SparseContent

__all__ = ["SparseFiles"]


class SparseFiles:
    """The files that sparse members of stored layers mean, as a source of a repair (`ObjectSource`)."""

    name: str = "its layers"

    def __init__(self, run: Repair) -> None:
        self._run = run
        self._contents = SparseContents(run.state, store=False)

    def candidates(self, wanted: Mapping[ObjectId, int | None]) -> Iterator[tuple[ObjectId, int]]:
        """Yield those of *wanted* that a layer can make, each once; the receiver closes the descriptors."""
        needed = self._of_images() & wanted.keys()
        sizes = set(self._run.damage.sizes(needed).values()) if needed else set()
        for stream_id in self._layers() if needed else ():
            # What is damaged itself can help nobody, and the check has told of it.
            with suppress(ComposefsError, OSError):
                for content in self._members(stream_id):
                    if not sizes.intersection((None, content.form.size)):
                        continue
                    with suppress(ComposefsError, OSError, ValueError):
                        found = self._contents.find(content)
                        if isinstance(found, ObjectId) and found in needed:
                            needed.discard(found)
                            yield found, self._contents.write(content)
                    if not needed:
                        return

    def close(self) -> None:
        """Do nothing: it holds nothing."""

    def _of_images(self) -> set[ObjectId]:
        return {each for node in self._run.damage.nodes.values() if node.is_image for each in node.lacking}

    def _layers(self) -> list[ObjectId]:
        """The streams of layers, those included that have lost their names."""
        links = self._run.damage.roots.links["streams"]
        found = {stream_id for name, stream_id in links.items() if name.startswith(LAYER_STREAMS)}
        for node in self._run.damage.nodes.values():
            named = ((name_of(name, target) or "", target) for name, target in node.named)
            found.update(target for path, target in named if path.startswith(f"streams/{LAYER_STREAMS}"))
        return sorted(found & self._run.damage.nodes.keys())

    def _members(self, stream_id: ObjectId) -> Iterator[SparseContent]:
        with streams.open_stream(self._run.state, "", stream_id, OCI_LAYER) as reader:
            for entries in read_batches(reader.chunks(), EntryReader()):
                for entry in entries:
                    if isinstance(entry.content, SparseContent) and entry.content.form.size > INLINE_MAX:
                        yield entry.content
