"""What is wrong, object by object: which streams and images lack what, and which references are hurt by that.

Owns the view that a repair works with, and keeping it true while objects come back.  Does not own finding damage
(`check`) nor undoing it (`repair`).  Unlike `graph.visit` it goes on where something is damaged.

A stream can be *malformed*, which no other copy of it would mend, or *flawed*: it is not what a name says, but may well
be what another says.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from ..._repo import objects, publish
from ..._repo.state import RepoState
from ...digest import ObjectId
from ...erofs.reader.tree import image_to_tree
from ...errors import AlgorithmMismatchError, FormatError, IntegrityError, ObjectNotFoundError
from ...findings import Finding
from ...results import FsckResult
from ...tree.inodes import ExternalFile
from ...tree.walk import directories
from .. import reachability
from ..reachability import Node, Reference, Roots
from .looking import Seen, look
from .stream_names import name_of

__all__ = ["MISSING", "Damage", "Lack", "is_there"]

MISSING = "it is missing"

_NEEDED = ("named-image-invalid", "named-stream-invalid")
_FLAWED = ("stream-digest-mismatch", "stream-tail-missing")
_MALFORMED = (
    "image-invalid",
    "stream-content-invalid",
    "stream-open-failed",
    "stream-read-failed",
)
_WRONG_SIZE = "stream-size-mismatch"


@dataclass(slots=True)
class Lack:
    """A stream or image that could be read."""

    named: tuple[tuple[str, ObjectId], ...]
    lacking: set[ObjectId]
    """Objects that it needs, those that are missing or corrupt."""
    is_image: bool


def is_there(state: RepoState, object_id: ObjectId) -> bool:
    """Whether anything stands at the path of an object.

    Raises:
        OSError: it cannot be told.
    """
    return objects.stands(state, object_id)


class Damage:
    """The state of everything that has a name.

    Reads all streams and images once, and looks for each object that they list.

    Args:
        found: by a check.
    """

    def __init__(self, state: RepoState, found: FsckResult) -> None:
        self._state = state
        self.corrupt: dict[ObjectId, str] = {}
        """Objects, and what is wrong."""
        self.malformed: set[ObjectId] = set()
        self.flawed: set[tuple[str, ObjectId]] = set()
        """Paths of names, and the streams that are not what these say."""
        self.nodes: dict[ObjectId, Lack] = {}
        self.unreadable: dict[ObjectId, str] = {}
        """Streams and images that are missing or corrupt, and what is wrong."""
        self.unknown: set[ObjectId] = set()
        """Objects that could not be read, of which nobody knows whether they are damaged: they are left alone."""
        self._brought: set[ObjectId] = set()
        wrong_sizes = [self._take(finding) for finding in found.errors]
        self.read_names()
        # An object that has been cut makes the streams that have it shorter, too, and they are not to blame.
        sound = {each for each, node in self.nodes.items() if not node.lacking}
        self.malformed.update(each for each in wrong_sizes if each in sound)
        self.flawed = {pair for pair in self.flawed if pair[1] in sound}

    def _take(self, finding: Finding) -> ObjectId | None:
        """Sort a finding in; one that is to be seen in the light of others gives the stream."""
        if finding.path.startswith("objects/"):
            with suppress(FormatError):
                object_id = ObjectId.from_path(finding.path)
                if object_id.algorithm is self._state.algorithm and self._is_damaged(object_id):
                    self.corrupt[object_id] = finding.text
        elif finding.kind in _NEEDED and (needed := finding.object_id) is not None:
            self.flawed.add((name_of(finding.name, needed) or "", needed))
        elif finding.kind in (*_MALFORMED, *_FLAWED, _WRONG_SIZE):
            category, _, name = finding.path.partition("/")
            led_to = publish.object_of(self._state, "images" if category == "images" else "streams", name)
            if led_to is None or led_to in self.corrupt:
                return None
            if finding.kind == _WRONG_SIZE:
                return led_to
            if finding.kind in _FLAWED:
                self.flawed.add((finding.path, led_to))
            else:
                self.malformed.add(led_to)
        return None

    def _is_damaged(self, object_id: ObjectId) -> bool:
        """Whether another look finds an object damaged: the check may have met a moment in which a disk failed."""
        seen = look(self._state, object_id)
        if seen is Seen.UNKNOWN:
            self.unknown.add(object_id)
        return seen in (Seen.WRONG, Seen.BAD_BLOCKS)

    def read_names(self) -> None:
        """Look again at all names, after some have been made."""
        self.roots: Roots = reachability.roots(self._state)
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
            if object_id in self.nodes or object_id in self.unreadable or object_id in self.unknown:
                continue
            try:
                node = reachability.read_node(self._state, object_id)
            except ObjectNotFoundError:
                self.unreadable[object_id] = MISSING
            except IntegrityError as error:
                self.unreadable[object_id] = self.corrupt.get(object_id, str(error))
            except OSError as error:
                if self._is_damaged(object_id):
                    self.unreadable[object_id] = self.corrupt.get(object_id, str(error))
                else:
                    self.unknown.add(object_id)
            except (FormatError, AlgorithmMismatchError):
                # Its digest is right, so no other copy is better.
                self.nodes[object_id] = Lack((), set(), False)
                self.malformed.add(object_id)
            else:
                self.nodes[object_id] = Lack(node.named, self._lacking(node), node.kind is reachability.Kind.IMAGE)
                pending += [target for _, target in node.named]

    def _lacking(self, node: Node) -> set[ObjectId]:
        width = self._state.algorithm.digest_size
        ids = (ObjectId(node.objects[at : at + width]) for at in range(0, len(node.objects), width))
        return {
            object_id for object_id in ids if object_id in self.corrupt or not self.is_there(object_id, unknown=True)
        }

    def is_there(self, object_id: ObjectId, *, unknown: bool = False) -> bool:
        """Whether anything stands at the path of an object; *unknown* where that cannot be told."""
        try:
            return is_there(self._state, object_id)
        except OSError:
            self.unknown.add(object_id)
            return unknown

    @property
    def wanted(self) -> dict[ObjectId, str]:
        """What is missing or corrupt and needed, by what has a name or is to get one; and which of the two."""
        return self._lacked_by([*self._named(), *self._brought])

    @property
    def needed(self) -> dict[ObjectId, str]:
        """What is missing or corrupt and needed by what has a name; and which of the two."""
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

    def hurts(self, object_id: ObjectId, path: str = "") -> bool:
        """Whether something is wrong with a stream or image, or with what it leads to; as *path* if that is given."""
        if (path, object_id) in self.flawed:
            return True
        for reached in self.reach(object_id):
            if not self.is_whole(reached):
                return True
            if any((name_of(name, target), target) in self.flawed for name, target in self.nodes[reached].named):
                return True
        return False

    def is_whole(self, object_id: ObjectId) -> bool:
        """Whether a stream or image itself is, whatever it leads to."""
        node = self.nodes.get(object_id)
        return node is not None and not node.lacking and object_id not in self.malformed

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
        """The references that lead nowhere, or to something that is not whole."""
        return [
            each
            for each in self.roots.references
            if each.object_id is None or self.hurts(each.object_id, f"{each.category}/{each.name}")
        ]
