"""What is wrong, object by object: which streams and images lack what, and which references are hurt by that.

Owns the view that a repair works with, and keeping it true while objects come back.  Does not own finding damage
(`check`) nor undoing it (`repair`).  Unlike `graph.visit` it goes on where something is damaged.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .._repo import objects
from .._repo.state import RepoState
from ..digest import ObjectId
from ..erofs.reader import image_to_tree
from ..errors import AlgorithmMismatchError, FormatError, IntegrityError, ObjectNotFoundError
from ..tree.inodes import ExternalFile
from ..tree.walk import directories
from . import graph
from .graph import Node, Reference, Roots

__all__ = ["MISSING", "Damage", "Lack", "is_there"]

MISSING = "it is missing"


@dataclass(slots=True)
class Lack:
    """A stream or image that could be read."""

    named: tuple[tuple[str, ObjectId], ...]
    lacking: set[ObjectId]
    """Of the objects that it needs, those that are missing or corrupt."""
    is_image: bool


def is_there(state: RepoState, object_id: ObjectId) -> bool:
    """Whether anything stands at the path of an object."""
    return os.access(object_id.path, os.F_OK, dir_fd=state.objects_fd)


class Damage:
    """The state of everything that has a name.

    Reads all streams and images once, and looks for each object that they list.

    Args:
        corrupt: objects that a check found corrupt, and what is wrong.
        flawed: streams that can be read and are not what their name says.
    """

    def __init__(self, state: RepoState, corrupt: Mapping[ObjectId, str], flawed: Mapping[ObjectId, str]) -> None:
        self._state = state
        self.corrupt: dict[ObjectId, str] = dict(corrupt)
        self.flawed: dict[ObjectId, str] = dict(flawed)
        self.nodes: dict[ObjectId, Lack] = {}
        self.unreadable: dict[ObjectId, str] = {}
        """Streams and images that are missing or corrupt, and what is wrong."""
        self._brought: set[ObjectId] = set()
        self.read_names()

    def read_names(self) -> None:
        """Look again at all names, after some have been made."""
        self.roots: Roots = graph.roots(self._state)
        self.read(self._named())

    def bring(self, object_id: ObjectId) -> None:
        """Want a stream, with all that it needs, that has no name yet."""
        self._brought.add(object_id)
        self.read([object_id])

    def read(self, ids: Iterable[ObjectId]) -> None:
        """Take in streams and images, and all that these lead to."""
        pending = [*ids]
        while pending:
            object_id = pending.pop()
            if object_id in self.nodes or object_id in self.unreadable:
                continue
            try:
                node = graph.read_node(self._state, object_id)
            except ObjectNotFoundError:
                self.unreadable[object_id] = MISSING
            except (IntegrityError, OSError) as error:
                self.unreadable[object_id] = self.corrupt.get(object_id, str(error))
            except (FormatError, AlgorithmMismatchError) as error:
                # Its digest is right, so no other copy is better.
                self.nodes[object_id] = Lack((), set(), False)
                self.flawed[object_id] = str(error)
            else:
                self.nodes[object_id] = Lack(node.named, self._lacking(node), node.kind is graph.Kind.IMAGE)
                pending += [target for _, target in node.named]

    def _lacking(self, node: Node) -> set[ObjectId]:
        width = self._state.algorithm.digest_size
        ids = (ObjectId(node.objects[at : at + width]) for at in range(0, len(node.objects), width))
        return {object_id for object_id in ids if object_id in self.corrupt or not is_there(self._state, object_id)}

    @property
    def wanted(self) -> dict[ObjectId, str]:
        """What is missing or corrupt and needed, by what has a name or is to get one; and which of the two."""
        return self._lacked_by([*self._named(), *self._brought])

    @property
    def needed(self) -> dict[ObjectId, str]:
        """The same only for what has a name."""
        return self._lacked_by(self._named())

    def _named(self) -> list[ObjectId]:
        return [object_id for links in self.roots.links.values() for object_id in links.values()]

    def _lacked_by(self, ids: Iterable[ObjectId]) -> dict[ObjectId, str]:
        found: dict[ObjectId, str] = {}
        for reached in self.reach(*ids):
            if reached in self.unreadable:
                found[reached] = self.unreadable[reached]
            elif reached in self.nodes:
                for object_id in self.nodes[reached].lacking:
                    found[object_id] = self.corrupt.get(object_id, MISSING)
        return found

    def sizes(self, wanted: Iterable[ObjectId]) -> dict[ObjectId, int | None]:
        """Sizes of objects in bytes, as images tell them; None if none does."""
        found: dict[ObjectId, int | None] = dict.fromkeys(wanted)
        images = [each for each, node in self.nodes.items() if node.is_image and not node.lacking.isdisjoint(found)]
        known = set[ObjectId]().union(*(self.nodes[each].lacking for each in images))
        if not known.issuperset(found):
            return found  # all sizes must be looked at anyway
        for image_id in images:
            content = objects.read_object(self._state, image_id)
            for directory in directories(image_to_tree(content, self._state.algorithm)):
                for inode in directory.children.values():
                    if isinstance(inode, ExternalFile) and inode.digest in found:
                        found[ObjectId(inode.digest)] = inode.size
        return found

    def replaced(self, ids: Iterable[ObjectId]) -> None:
        """These are whole now; what streams and images among them need is looked for."""
        whole = set(ids)
        for object_id in whole:
            self.corrupt.pop(object_id, None)
        for node in self.nodes.values():
            node.lacking -= whole
        again = self.unreadable.keys() & whole
        for object_id in again:
            del self.unreadable[object_id]
        self.read(again)

    # -- what is hurt --------------------------------------------------------------------------

    def hurts(self, object_id: ObjectId) -> bool:
        """Whether something is wrong with a stream or image, or with what it leads to."""
        return any(
            reached in self.unreadable or reached in self.flawed or self.nodes[reached].lacking
            for reached in self.reach(object_id)
        )

    def reach(self, *ids: ObjectId) -> set[ObjectId]:
        """The streams and images that these lead to, themselves included."""
        found, pending = set[ObjectId](), [*ids]
        while pending:
            current = pending.pop()
            if current not in found:
                found.add(current)
                node = self.nodes.get(current)
                pending += [target for _, target in node.named] if node else []
        return found

    def hurt_references(self) -> list[Reference]:
        """Those that lead nowhere, or to something that is not whole."""
        return [each for each in self.roots.references if each.object_id is None or self.hurts(each.object_id)]
