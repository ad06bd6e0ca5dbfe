"""The tree of an image, grown while its layers are imported, so that little is left to do when they are there.

Owns the order: layers go into the tree lowest first, whenever they arrive.  The layer that is next and is just being
imported is followed chunk by chunk; others are read back from their streams as soon as those below them are in.  Does
not own what layers mean (`filesystem`, `tar.members`), nor importing them (`stages`).

What goes into the tree has not been verified yet.  Nobody looks at the tree before the layers have been, and a layer
that contradicts itself is met again then, when its error no longer hides that its digest is wrong.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Self

from ..._aio.hops import write_hop
from ..._repo import streams
from ..._repo.batch import Buffer
from ..._repo.state import RepoState
from ...digest import ObjectId
from ...errors import ComposefsError, inputs_named
from ...naming import layer_stream
from ...splitstream import OCI_LAYER
from ...tree.inodes import Directory
from ..filesystem import MAX_MEMBERS, TreeBuilder, XattrFilter
from ..sparse_contents import SparseContents
from ..tar.members import EntryReader, TarEntry, read_batches

__all__ = ["Follower", "GrowingTree", "tree_of_layers"]


_LAYER: Final = "layer "


class Follower:
    """Takes the body of one layer's splitstream, in order, in whatever pieces it is made.  Blocks for computation."""

    def __init__(self, builder: TreeBuilder, settle: Callable[[], None]) -> None:
        self._builder, self._settle, self._reader = builder, settle, EntryReader()
        self.begun: bool = False
        """Some of the layer is in the tree."""
        self.complete: bool = False
        """All of it is."""
        self.failed: bool = False
        """The layer makes no sense, and the tree is of no use."""

    def take(self, body: Iterable[Buffer | ObjectId]) -> None:
        """Put what *body*, which need not stay unchanged, completes into the tree; never raises for what is in it."""
        if self.failed:
            return
        entries: list[TarEntry] = []
        try:
            if not self._reader.ended:
                self._reader.feed(body, entries)
            self.begun = True
            self._builder.add(entries)
            self._settle()
        except ComposefsError:
            self.failed = True

    def finish(self) -> None:
        """The layer has come to its end."""
        try:
            if not self._reader.ended:
                self._reader.finish()
            self._builder.note_difference(self._reader.difference)
        except ComposefsError:
            self.failed = True
        self.complete = not self.failed


class GrowingTree:
    """One image's.  Lives on the event loop, where one layer at a time goes into the tree.

    In its ``with`` block what has grown is out of the garbage collector's sight: there is no garbage in it, and a
    collection of all that is alive stops the event loop for half a microsecond a node.

    Args:
        diff_ids: in the order of the config; one may occur twice.
    """

    def __init__(self, state: RepoState, diff_ids: Sequence[str], max_members: int = MAX_MEMBERS) -> None:
        self._state, self._diff_ids, self._max_members = state, diff_ids, max_members
        self._builder: TreeBuilder | None = TreeBuilder(SparseContents(state, store=True).find, max_members)
        self._count = 0
        self._busy = False
        self._hides = False
        self.differences: dict[str, str] = {}
        """By diff_id: why composefs-rs 0.9.0 makes something else of a layer.  Complete after `finish`."""

    def __enter__(self) -> Self:
        self._hides = gc.get_freeze_count() == 0  # what an application has frozen stays so
        return self

    def __exit__(self, *_: object) -> None:
        if self._hides:
            gc.unfreeze()

    def _settle(self) -> None:
        if self._hides:
            gc.freeze()

    def follow(self, diff_id: str) -> Follower | None:
        """Somebody who wants to see the layer *diff_id* while it is imported, if it is next; `let_go` ends it."""
        if self._busy or self._builder is None or self._diff_ids[self._count : self._count + 1] != [diff_id]:
            return None
        self._busy = True
        self._builder.begin_layer(f"{_LAYER}{diff_id}")
        return Follower(self._builder, self._settle)

    def let_go(self, follower: Follower) -> None:
        """The layer has been imported, by whomever, or not."""
        self._busy = False
        if follower.complete:
            self._count += 1
        elif follower.failed or follower.begun:
            self._builder = None

    async def catch_up(self, stored: Mapping[str, ObjectId]) -> None:
        """Read layers that are stored and next into the tree, unless somebody is about it."""
        while not self._busy and self._builder is not None and self._count < len(self._diff_ids):
            diff_id = self._diff_ids[self._count]
            if diff_id not in stored:
                return
            self._busy = True
            try:
                await write_hop(self._state, self._add, self._builder, diff_id, stored[diff_id])
            finally:
                self._busy = False

    def _add(self, builder: TreeBuilder, diff_id: str, stream_id: ObjectId) -> None:
        try:
            _add_layer(self._state, builder, diff_id, stream_id)
            self._count += 1
            self._settle()
        except ComposefsError:
            self._builder = None

    def finish(self, layers: Sequence[tuple[str, ObjectId]]) -> Directory:
        """The tree, transformed as images want it; *layers* are read again if something came in between.  Blocks.

        Raises:
            OciError, TarError, SplitstreamError
        """
        builder, self._builder = self._builder, None
        if builder is None or self._count < len(self._diff_ids):
            builder = _builder(self._state, layers, True, self._max_members)
        self.differences = {name.removeprefix(_LAYER): reason for name, reason in builder.differences.items()}
        return builder.finish()


def tree_of_layers(
    state: RepoState,
    layers: Iterable[tuple[str, ObjectId]],
    xattrs: XattrFilter | None,
    *,
    store: bool = False,
) -> Directory:
    """The tree that stored layers, the lowest first, make together.

    Blocks; reads their streams, and of their objects only the data of sparse files.

    Args:
        store: the files that sparse members mean, which an image of the tree refers to.
    """
    return _builder(state, layers, store).finish(xattrs)


def _builder(
    state: RepoState, layers: Iterable[tuple[str, ObjectId]], store: bool, max_members: int = MAX_MEMBERS
) -> TreeBuilder:
    builder = TreeBuilder(SparseContents(state, store=store).find, max_members)
    for diff_id, stream_id in layers:
        _add_layer(state, builder, diff_id, stream_id)
    return builder


def _add_layer(state: RepoState, builder: TreeBuilder, diff_id: str, stream_id: ObjectId) -> None:
    """Read one stored layer into the tree."""
    layer = f"{_LAYER}{diff_id}"
    with inputs_named(layer), streams.open_stream(state, layer_stream(diff_id), stream_id, OCI_LAYER) as reader:
        builder.begin_layer(layer)
        members = EntryReader()
        for entries in read_batches(reader.chunks(), members):
            builder.add(entries)
        builder.note_difference(members.difference)
