"""Checking a repository: everything that composefs-rs's fsck looks at, and content against every name there is.

Owns the order of the parts and the result.  Does not own the parts (`checks`), nor what only OCI knows
(`composefs_async.oci.image_fsck`).

Streams come first.  Where the name of one ends in a content digest its content is hashed, and each of its objects is
compared with its own name on the way; what remains of the objects is read afterwards, so that each is read once, and
again only for each further stream that has it.  Memory: a mebibyte for each processor, the ids looked at that way, the
largest image, and what is found.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Iterable

from ..._log import logger
from ..._repo.metadata import Metadata
from ..._repo.state import RepoState
from ..._sys import files
from ..._sys.beneath import opened_beneath
from ...errors import RepositoryError
from ...findings import KINDS, Finding
from ...progress import ProgressCallback
from ...results import FsckResult
from ..gc.shards import SHARDS
from .artifacts import packed_layers
from .checkpoint import Scrub
from .context import Run, raise_ours
from .images import check_image, check_needed_image
from .links import check_leftovers, check_references, linked, listing
from .objects import check_shard, check_top
from .streams import StreamCheck

__all__ = ["fsck", "recheck"]

_log = logger("fsck")

_ORDER = ("meta.json", "objects", "streams", "images")


def fsck(
    state: RepoState,
    *,
    metadata_only: bool = False,
    resume: bool = False,
    limit: int | None = None,
    progress: ProgressCallback | None = None,
    check: Callable[[], object] | None = None,
) -> FsckResult:
    """Check everything and change nothing.  Blocks; other work goes on beside it, but nothing exclusive.

    What is damaged is in the result, never raised.  A check that ends early, by an interruption or a crash, can be
    continued where it was: it leaves its position in the repository, if that can be written.

    Args:
        metadata_only: read no objects but streams and images.
        resume: continue a check of content that ended early, with another look at what it had found.
        limit: bytes a second that are read at most.
        check: called now and then; what it raises ends the check.

    Raises:
        OSError: something that says nothing about the repository, such as too many open files.
    """
    run = Run(state, metadata_only=metadata_only, limit=limit, progress=progress, check=check)
    scrub = Scrub(state, resume=resume and not metadata_only)
    with state.shared(), files.whole_paths(state.path):
        try:
            result = _check(run, scrub)
        except BaseException:
            if not metadata_only:
                scrub.save()
            raise
        if not metadata_only:
            scrub.finished()
    for finding in result.findings:
        _log.warning("%s: %s: %s", state.path, finding.path, finding.text)
    return result


def recheck(
    state: RepoState, before: FsckResult, changed: Collection[str], *, check: Callable[[], object] | None = None
) -> FsckResult:
    """Check all names and what they lead to, as after a check that had the result *before*.  Blocks.

    Args:
        changed: paths of what has been put right or moved away since; what else there is besides names is as before.
    """
    run = Run(state, check=check)
    with state.shared(), files.whole_paths(state.path):
        for finding in before.findings:
            path = finding.path
            parents = {path, *(path[:at] for at, letter in enumerate(path) if letter == "/")}
            if not path.startswith(("streams", "images")) and parents.isdisjoint(changed):
                run.findings.append(finding)
        streams, images = listing(run, "streams"), listing(run, "images")
        _check_images(run, _check_all_streams(run, Scrub(state, resume=False), streams, images), images)
    return _result(run.findings, before.has_metadata, before.objects_checked, len(streams), len(images))


def _check(run: Run, scrub: Scrub) -> FsckResult:
    has_metadata = _check_metadata(run)
    streams, images = listing(run, "streams"), listing(run, "images")
    checks = _check_all_streams(run, scrub, streams, images)
    objects = 0 if run.metadata_only else _check_objects(run, scrub)
    _check_images(run, checks, images)
    check_leftovers(run)
    return _result(run.findings, has_metadata, objects, len(streams), len(images))


def _check_all_streams(run: Run, scrub: Scrub, streams: list[str], images: list[str]) -> StreamCheck:
    checks = StreamCheck(run, linked(run.state, "streams", streams), linked(run.state, "images", images))
    _check_streams(run, scrub, checks, streams)
    return checks


def _check_images(run: Run, checks: StreamCheck, images: list[str]) -> None:
    """Check images with a name, images that only streams refer to, and the references to all names."""
    for _ in run.each("images", lambda name: check_image(run, name), images, len(images)):
        pass
    for needed in checks.needed_images():
        check_needed_image(run, needed)
    check_references(run, "streams")
    check_references(run, "images")


def _check_metadata(run: Run) -> bool:
    """Read meta.json again: it may have changed since the repository was opened."""
    try:
        with opened_beneath("meta.json", os.O_RDONLY | os.O_NONBLOCK, dir_fd=run.state.fd) as fd:
            raw = os.read(fd, 1 << 20)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise_ours(error, "meta.json")
        run.failed("metadata-parse-failed", "meta.json", error, detail=os.strerror(error.errno or errno.EIO))
        return True
    try:
        found = Metadata.decode(raw, "meta.json")
    except RepositoryError as error:
        run.found("metadata-parse-failed", "meta.json", detail=str(error))
        return True
    if found.algorithm is not run.state.algorithm:
        expected, measured = found.algorithm.text, run.state.algorithm.value
        run.found("metadata-algorithm-mismatch", "meta.json", expected=expected, measured=measured)
    return True


def _check_streams(run: Run, scrub: Scrub, checks: StreamCheck, names: list[str]) -> None:
    """Check streams with a name in its order, and then what only they refer to."""
    position = scrub.position
    rest = [name for name in names if name > position.stream or f"streams/{name}" in scrub.suspects]
    for name in sorted({*names} - {*rest}):
        checks.check(name, content=False)
    before = mismatches = 0
    for name, _ in zip(rest, run.each("streams", checks.check, rest, len(names), len(names) - len(rest)), strict=True):
        position.stream = max(position.stream, name)
        before = _suspect(scrub, run.findings, before)
        mismatches = _suspect(scrub, checks.mismatches, mismatches)
    total = len(names)
    while needed := checks.needed_streams():
        total += len(needed)
        for _ in run.each("streams", checks.check_needed, needed, total, total - len(needed)):
            pass
    checks.excuse(lambda: packed_layers(run.state, names))


def _check_objects(run: Run, scrub: Scrub) -> int:
    position, before, count = scrub.position, len(run.findings), 0

    def work(shard: int) -> int:
        again = shard > position_shard or f"objects/{shard:02x}" in scrub.suspects
        return check_shard(run, shard, read=again)

    position_shard, shards = position.shard, check_top(run)
    for shard, objects in zip(shards, run.each("objects", work, shards, SHARDS, SHARDS - len(shards)), strict=True):
        count += objects
        position.shard = max(position.shard, shard)
        before = _suspect(scrub, run.findings, before)
    return count


def _suspect(scrub: Scrub, findings: list[Finding], before: int) -> int:
    """Note where something was found since; returns the number of findings."""
    after = len(findings)
    for finding in findings[before:after]:
        path = finding.path[:10] if finding.path.startswith("objects/") else finding.path
        if path not in scrub.position.suspects:
            scrub.position.suspects.append(path)
    scrub.advanced()
    return after


def _result(findings: Iterable[Finding], has_metadata: bool, objects: int, streams: int, images: int) -> FsckResult:
    """Count, and put the findings in an order that does not depend on threads."""
    unique = sorted(dict.fromkeys(findings), key=lambda each: (_part(each), each.path, [*KINDS].index(each.kind)))
    corrupt = {
        each.path
        for each in unique
        if KINDS[each.kind].corrupts and each.path.count("/") == _DEPTH.get(each.path.partition("/")[0])
    }
    return FsckResult(
        has_metadata,
        objects,
        sum(path.startswith("objects/") for path in corrupt),
        streams,
        sum(path.startswith("streams/") for path in corrupt),
        images,
        sum(path.startswith("images/") for path in corrupt),
        sum(KINDS[each.kind].counter == "broken_links" for each in unique),
        sum(KINDS[each.kind].counter == "missing_objects" for each in unique),
        tuple(unique),
    )


_DEPTH = {"objects": 2, "streams": 1, "images": 1}
"""Slashes in the path of what is counted: references are not."""


def _part(finding: Finding) -> int:
    first = finding.path.partition("/")[0]
    return _ORDER.index(first) if first in _ORDER else len(_ORDER)
