"""Repair: what is missing or corrupt comes back from elsewhere, what can be recomputed is, and the rest is told.

Owns the order of steps and the account of them.  Does not own finding damage (`fsck.check`), where content comes from
(`sources`), putting it in place (`quarantine`), what a dry run works on (`shadow`), or what can be mended with OCI
documents only (`composefs_async.oci.image_repair`, which drives the same `Repair`).

Each step leaves the repository no worse wherever it is stopped: objects are compared with their ids and flushed before
they are in place, what they replace is kept in a quarantine, names appear only when what they lead to is there, and
what is removed is moved to the quarantine, last, when nothing needs it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress

from ... import fsverity
from ..._repo import publish
from ..._repo.publish import Link
from ..._repo.state import RepoState
from ..._sys import files
from ...digest import ObjectId
from ...errors import FormatError
from ...findings import Finding
from ...progress import Message, ProgressCallback
from ...results import FsckResult, RepairAction, RepairResult, Unrepaired
from .. import reachability
from ..fsck.check import fsck, recheck
from . import lost_streams
from .damaged_graph import MISSING, Damage, is_there
from .looking import is_no_object
from .quarantine import Quarantine, replace
from .shadow import Shadow, ShadowQuarantine
from .sources import DirectorySource, ObjectSource, QuarantineSource, RepositorySource, open_source
from .stream_names import name_of

__all__ = ["ITSELF", "Repair", "repair"]

_IN_THE_WAY = ("entry-not-symlink", "unexpected-file-type")
_ODD = ("broken-symlink", "link-target-invalid", "stat-failed")
ITSELF = "the repository itself"
Check = Callable[[], object] | None


def repair(
    state: RepoState,
    sources: Sequence[str | os.PathLike[str]] = (),
    *,
    dry_run: bool = False,
    progress: ProgressCallback | None = None,
    check: Check = None,
) -> RepairResult:
    """Check everything, and mend what *sources* and the repository itself have the content for.  Blocks.  Durable.

    Args:
        sources: repositories of the same algorithm and directories of files, tried in this order.
        dry_run: tell what a run would do, and change nothing: it is done on a `Shadow`, which takes room in the
            directory for temporary files for what would come back.
        check: called now and then; what it raises ends the repair, and what has been done stays.

    Raises:
        AlgorithmMismatchError: a source is a repository of the other algorithm.
        ReadOnlyRepositoryError
    """
    opened: list[ObjectSource] = []
    try:
        opened.extend(open_source(source, state.algorithm) for source in sources)
        with closing(Repair.begin(state, dry_run=dry_run, progress=progress, check=check)) as run:
            for each in opened:
                run.take(each, check=check)
            return run.finish(check=check)
    finally:
        for each in opened:
            each.close()


class Repair:
    """One repair under way: `begin`, any number of `take`, `finish`, `close`.  All of it blocks.

    A dry run does the same as a run, on a shadow of the repository.
    """

    def __init__(self, real: RepoState, before: FsckResult, *, dry_run: bool, progress: ProgressCallback) -> None:
        self.before: FsckResult = before
        self.dry_run: bool = dry_run
        self._real = real
        shadow = Shadow(real) if dry_run else None
        self.state: RepoState = shadow or real
        """What is repaired."""
        self.report = progress
        self._quarantine = ShadowQuarantine(shadow) if shadow else Quarantine(real)
        try:
            self.damage: Damage = Damage(self.state, before)
        except BaseException:
            self.close()
            raise
        self.actions: list[RepairAction] = []
        self._hurt = [each.path for each in self.damage.hurt_references()]
        self.problems: list[str] = []
        """Why a source could not help."""
        self.covered: set[str] = set()
        """The paths of all actions."""
        self._lost: dict[str, ObjectId] = {}

    @classmethod
    def begin(
        cls, state: RepoState, *, dry_run: bool = False, progress: ProgressCallback | None = None, check: Check = None
    ) -> Repair:
        """Check everything, and mend what needs no other source: protection by fs-verity, names, what was put aside.

        Raises:
            ReadOnlyRepositoryError
        """
        if not dry_run:
            state.require_writable()
        report = progress or _ignore
        run = cls(state, fsck(state, progress=report, check=check), dry_run=dry_run, progress=report)
        try:
            with run.state.shared(), files.whole_paths(state.path):
                # What is right and only not protected is replaced by a copy of itself.
                run._clear_places()
                run._take_objects(RepositorySource(run.state, ITSELF, owned=False), run.damage.corrupt, ITSELF)
                run.mend_names()
            run.take(QuarantineSource(state), check=check)
        except BaseException:
            run.close()
            raise
        return run

    def close(self) -> None:
        """Remove the shadow of a dry run; the repository stays open."""
        if self.state is not self._real:
            self.state.close()

    # -- objects -------------------------------------------------------------------------------

    def take(self, source: ObjectSource, *, check: Check = None) -> None:
        """Replace what is needed, and missing or corrupt, as far as *source* has it."""
        with self.state.shared(), files.whole_paths(self.state.path):
            if isinstance(source, RepositorySource):
                self._look_for_lost(source)
            while wanted := self._wanted():
                if not self._take_objects(source, wanted, source.name, check):
                    break
            self.mend_names()

    def _wanted(self) -> dict[ObjectId, str]:
        wanted = self.damage.wanted
        return {each: why for each, why in wanted.items() if f"objects/{each.path}" not in self.covered}

    def _take_objects(
        self, source: ObjectSource, wanted: Mapping[ObjectId, str], name: str, check: Check = None
    ) -> bool:
        done: list[ObjectId] = []
        sizes = self.damage.sizes(wanted) if isinstance(source, DirectorySource) else dict.fromkeys(wanted)
        candidates = _checking(source.candidates(sizes), check)
        try:
            for object_id in replace(self.state, candidates, self._quarantine):
                done.append(object_id)
                action = "restored" if wanted[object_id] == MISSING else "replaced"
                self.note(f"objects/{object_id.path}", action, name)
        finally:
            self.damage.replaced(done)
        return bool(done)

    def put(self, contents: Iterable[bytes], source: str) -> None:
        """Put objects whose content is at hand in place, as far as they are missing or corrupt."""
        by_id = {fsverity.digest(content, self.state.algorithm): content for content in contents}
        needed = {each: self.damage.corrupt[each] for each in by_id if each in self.damage.corrupt}
        needed |= {each: MISSING for each in by_id if not is_there(self.state, each)}
        with self.state.shared():
            self._take_objects(_Contents(by_id, source), needed, source)

    def bring(self, object_id: ObjectId, source: ObjectSource) -> None:
        """Bring a stream here from *source*, with all that it needs, though nothing here refers to it yet."""
        self.damage.bring(object_id)
        self.take(source)

    def note(self, path: str, action: str, source: str = "") -> None:
        """Write down what has been done, or in a dry run would be."""
        self.actions.append(RepairAction(path, action, source))
        self.covered.add(path)
        done = f"would be {action}" if self.dry_run else action
        self.report(Message(f"{path}: {done}" + (f" from {source}" if source else "")))

    # -- names ---------------------------------------------------------------------------------

    def mend_names(self) -> None:
        """Make the names whose objects are known and there; durable."""
        while links := self._wanted_links():
            for link in links:
                self.note(link.path, "linked")
            publish.publish(self.state, links)
            self.damage.read_names()

    def _clear_places(self) -> None:
        """Move away what stands where a link or a directory should be: files, and links that can lead to no object."""
        for finding in self.before.findings:
            path, kind = finding.path, finding.kind
            in_the_way = kind in _IN_THE_WAY and not self._is_linked_directory(path)
            if not finding.unread and (in_the_way or (kind in _ODD and self._leads_to_none(path))):
                self._put_aside(path)

    def _is_linked_directory(self, path: str) -> bool:
        """Whether it is a link in the place of a directory of names, which may be there on purpose."""
        if not (path in reachability.CATEGORIES or "/refs" in path):
            return False
        try:
            return stat.S_ISLNK(self.state.lstat(path).st_mode)
        except FileNotFoundError:
            return False

    def _is_hidden(self, path: str) -> bool:
        """Whether *path* is where names cannot be seen, nor be made."""
        hidden = (place for place, _ in self.damage.roots.hidden if place not in self.covered)
        return any(path == place or path.startswith(f"{place}/") for place in hidden)

    def _leads_to_none(self, path: str) -> bool:
        """Whether it is a link of the first level whose target is no place of an object; not once it is put aside."""
        category, _, name = path.partition("/")
        if category not in reachability.CATEGORIES or "/" in name or self._is_free(path):
            return False
        return publish.object_of(self.state, "images" if category == "images" else "streams", name) is None

    def _is_free(self, path: str) -> bool:
        """Whether no link is there."""
        return publish.target_of(self.state, path) is None

    def _wanted_links(self) -> list[Link]:
        wanted = [*self._missing_links(), *self._wrong_references()]
        return [link for link in wanted if not self._is_hidden(link.path)]

    def _missing_links(self) -> list[Link]:
        """Links of the first level that are not as they should be, to objects that are there and not corrupt."""
        found: dict[str, Link] = {}
        for path, object_id in self._meant().items():
            category, _, name = path.partition("/")
            if object_id not in self.damage.corrupt and self.damage.is_there(object_id):
                link = Link.to_object("images" if category == "images" else "streams", name, object_id)
                if publish.target_of(self.state, path) != link.target:
                    found[path] = link
        return list(found.values())

    def _wrong_references(self) -> list[Link]:
        """Links below ``refs/`` that mean a name that is there, but do not lead to it."""
        found: list[Link] = []
        for reference in self.damage.roots.references:
            if reference.object_id is not None:
                below = reference.path.removeprefix(f"{reference.category}/refs/")
                link = Link.reference(reference.category, below, reference.name)
                if publish.target_of(self.state, link.path) != link.target:
                    found.append(link)
        return found

    def _meant(self) -> dict[str, ObjectId]:
        """What names that are missing or wrong should lead to."""
        meant = {f"streams/{name}": found for name, found in self._lost_streams().items()}
        roots = self.damage.roots
        meant.update((f"streams/{name}", found) for name, found in roots.links["streams"].items())
        for node in self.damage.nodes.values():
            for reference, object_id in node.named:
                path = name_of(reference, object_id)
                if path and self._is_free(path):
                    meant[path] = object_id
        named = {each.name for each in roots.references if each.category == "images"}
        for name in named | roots.links["images"].keys():
            with suppress(FormatError):
                meant[f"images/{name}"] = ObjectId.from_hex(name)
        return {path: found for path, found in meant.items() if found.algorithm is self.state.algorithm}

    def _lost_names(self) -> list[str]:
        """Streams that references mean and that have no name any more."""
        links = self.damage.roots.links["streams"]
        references = self.damage.roots.references
        lost = {each.name for each in references if each.category == "streams" and each.name not in links}
        return sorted(lost - self._lost.keys())

    def _lost_streams(self) -> dict[str, ObjectId]:
        if lost := self._lost_names():
            self._lost.update(lost_streams.find(self.state, lost, self.damage))
        return self._lost

    def _look_for_lost(self, source: RepositorySource) -> None:
        """What a name means is not known here, but perhaps in *source*; its content must have the name's digest."""
        for name in self._lost_names():
            object_id = source.stream(name)
            if object_id is not None:
                self.damage.bring(object_id)

    # -- the end -------------------------------------------------------------------------------

    def finish(self, *, check: Check = None) -> RepairResult:
        """Move corrupt objects that nothing needs, and files in the place of links, away; check everything again."""
        with self.state.shared(), files.whole_paths(self.state.path):
            self._clean()
            self.state.syncs.sync()
        if not self.actions:
            after = self.before
        elif self.dry_run:
            after = recheck(self.state, self.before, self.covered, check=check)
        else:
            after = fsck(self.state, progress=self.report, check=check)
        hurt = Damage(self.state, after).hurt_references() if self.actions else self.damage.hurt_references()
        still_hurt = {each.path for each in hurt}
        return RepairResult(
            self.before,
            after,
            tuple(self.actions),
            tuple(Unrepaired(each.path, each.text, each.remedy, each.unread) for each in after.errors),
            tuple(self._hurt),
            tuple(path for path in self._hurt if path not in still_hurt),
            tuple(self.problems),
            "" if self.dry_run else self._quarantine.path,
            self.dry_run,
        )

    def _clean(self) -> None:
        needed = self.damage.needed
        lost = [each for each in self.damage.roots.references if each.object_id is None]
        names_of = {f"{each.category}/{each.name}" for each in lost}
        hidden = {path for path, _ in self.damage.roots.hidden} - self.covered
        unclear = hidden or self.damage.unknown or not needed.keys().isdisjoint(self.damage.unreadable)
        if unclear or not self.covered.issuperset(names_of):
            return  # it cannot be told what is needed
        for finding in self.before.errors:
            path = finding.path
            if finding.unread or path in self.covered or not self._is_in_the_way(finding):
                continue
            with suppress(FormatError):
                if ObjectId.from_path(path) in needed:
                    continue
            self._put_aside(path)

    def _is_in_the_way(self, finding: Finding) -> bool:
        """Whether nothing can need it: what is no object, seen now, and names that are foreign."""
        below_objects = finding.path.startswith("objects/")
        return is_no_object(self.state, finding.path) if below_objects else self._is_foreign(finding)

    def _is_foreign(self, finding: Finding) -> bool:
        """Whether it is a name that leads to another image than it says, and that no reference means."""
        means = {f"{each.category}/{each.name}" for each in self.damage.roots.references}
        return finding.kind == "image-name-mismatch" and finding.path not in means

    def _put_aside(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._quarantine.take(path)
        self.note(path, "quarantined")


class _Contents:
    """Bytes as a source."""

    def __init__(self, contents: Mapping[ObjectId, bytes], name: str) -> None:
        self._contents, self.name = contents, name

    def candidates(self, wanted: Mapping[ObjectId, int | None]) -> Iterator[tuple[ObjectId, int]]:
        for object_id in wanted:
            if object_id in self._contents:
                fd = os.memfd_create("object", os.MFD_CLOEXEC)
                files.write_all(fd, self._contents[object_id])
                yield object_id, fd

    def close(self) -> None:
        pass


def _ignore(event: object) -> None:
    pass


def _checking(candidates: Iterator[tuple[ObjectId, int]], check: Check) -> Iterator[tuple[ObjectId, int]]:
    for object_id, fd in candidates:
        try:
            if check:
                check()
        except BaseException:
            os.close(fd)
            raise
        yield object_id, fd
