"""A check as a whole: real repositories, what it does not stop at, the pace, and going on where it ended."""

from __future__ import annotations

import errno
import io
import json
import os
import tarfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from composefs_async import fsverity
from composefs_async._sys import verity
from composefs_async._upkeep import check
from composefs_async._upkeep.checks import content as check_content
from composefs_async._upkeep.checks import loading, merging, scrub
from composefs_async._upkeep.checks import run as check_run
from composefs_async._zstd import zstd
from composefs_async.digest import Algorithm, ObjectId
from composefs_async.errors import AlgorithmMismatchError, VerityMissingError
from composefs_async.findings import Finding
from composefs_async.progress import CheckProgress, ProgressEvent
from composefs_async.reports import FsckResult
from composefs_async.repository import Repository, state_of

from .corruptions import ANY, Victim
from .generations import VECTORS

SCRUB = ".composefs-async/scrub.json"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    return Victim.make(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def victim(sound: Victim, tmp_path: Path) -> Victim:
    return sound.copy(tmp_path)


def checked(victim: Victim) -> FsckResult:
    with Repository.open_path(victim.path) as repo:
        return repo.fsck()


# -- real repositories -------------------------------------------------------------------------


LOST_TAILS = 10
"""Layers that composefs-rs of 2026-04 stored without what follows the end marker of the tar."""


@pytest.mark.parametrize(
    ("flavour", "tails"),
    [
        ("g3-sha256", LOST_TAILS),
        ("g3-sha512", LOST_TAILS),
        ("g4-sha256-v1", 0),
        ("g4-sha256-v2", 0),
        ("g4-sha512-v1", 0),
    ],
)
def test_repositories_of_composefs_rs_have_known_flaws_only(flavour: str, tails: int, tmp_path: Path) -> None:
    content = zstd.decompress((VECTORS / "repository" / f"{flavour}.tar.zst").read_bytes())
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(tmp_path, filter="fully_trusted")
    with Repository.open_path(tmp_path) as repo:
        found = repo.fsck()
    assert [each.kind for each in found.findings] == ["stream-tail-missing"] * tails + ["image-invalid"]
    # The image of a tar that has a name of more than 255 bytes, which EROFS cannot hold.
    assert "an invalid name among" in found.findings[-1].detail


# -- meta.json ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        ("{", Finding("metadata-parse-failed", "meta.json", detail=ANY)),
        (
            '{"version": 1, "algorithm": "fsverity-sha512-12"}',
            Finding("metadata-algorithm-mismatch", "meta.json", expected="fsverity-sha512-12", measured="sha256"),
        ),
    ],
    ids=["unreadable", "other algorithm"],
)
def test_metadata_that_changed_since_the_repository_was_opened(content: str, finding: Finding, victim: Victim) -> None:
    with Repository.open_path(victim.path) as repo:
        (victim.path / "meta.json").write_text(content)
        assert repo.fsck().findings == (finding,)


def test_metadata_that_is_gone_since_is_no_damage(victim: Victim) -> None:
    with Repository.open_path(victim.path) as repo:
        (victim.path / "meta.json").unlink()
        found = repo.fsck()
    assert (found.ok, found.has_metadata) == (True, False)


# -- secure repositories -----------------------------------------------------------------------


def unprotected(object_id: ObjectId) -> ObjectId:
    raise VerityMissingError(object_id.hex())


def other_algorithm(object_id: ObjectId) -> ObjectId:
    raise AlgorithmMismatchError(object_id.hex(), "sha256", "sha512")


def unreadable(object_id: ObjectId) -> ObjectId:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


MEASURED = {"detail": "measuring fs-verity"}


@pytest.mark.parametrize(
    ("answer", "kind", "fields"),
    [
        (unprotected, "object-verity-missing", {}),
        (other_algorithm, "object-verity-failed", {**MEASURED, "cause": "it is protected by another algorithm"}),
        (unreadable, "object-verity-failed", {**MEASURED, "cause": "Input/output error (os error 5)"}),
        (lambda _: ObjectId(bytes(32)), "object-digest-mismatch", {"measured": "00" * 32}),
    ],
    ids=["unprotected", "other algorithm", "unreadable", "other digest"],
)
def test_objects_of_a_secure_repository_are_measured(
    answer: Callable[[ObjectId], ObjectId],
    kind: str,
    fields: dict[str, str],
    victim: Victim,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel's answers are made up; those of a real one are in tests/vm."""
    strange = victim.objects_of(victim.layers[0])[0]

    def measure(fd: int, algorithm: Algorithm, what: str) -> ObjectId:
        found = fsverity.digest(os.pread(fd, 1 << 24, 0), algorithm)
        return answer(found) if found == strange else found

    monkeypatch.setattr(loading, "NATIVE", False)
    monkeypatch.setattr(verity, "measure", measure)
    with Repository.open_path(victim.path) as repo:
        state_of(repo).secure = True
        found = repo.fsck()
    assert found.findings == (Finding(kind, f"objects/{strange.path}", **fields),)
    assert found.objects_corrupted == 1


# -- what ends a check -------------------------------------------------------------------------


def test_errors_that_say_nothing_about_the_repository_are_raised(
    victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    def merge(*args: object) -> merging.Merged:
        return merging.Merged(merging.Status.FULL, 8, 0, 0, 0, [loading.Failure(0, errno.EMFILE, "open")])

    monkeypatch.setattr(check_content, "merge", merge)
    with Repository.open_path(victim.path) as repo, pytest.raises(OSError, match="Too many open files"):
        repo.fsck()


class Enough(Exception):  # noqa: N818
    pass


def stop_at(stage: str, done: int) -> Callable[[ProgressEvent], None]:
    def report(event: ProgressEvent) -> None:
        if isinstance(event, CheckProgress) and (event.stage, event.done) == (stage, done):
            raise Enough

    return report


@pytest.mark.parametrize(
    ("stage", "done"), [("streams", 1), ("streams", 3), ("objects", 250), ("objects", 256), ("images", 1)]
)
def test_a_check_goes_on_where_it_ended(stage: str, done: int, victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = victim.objects_of(victim.layers[0])[0]
    measured = victim.overwrite(lost, b"other content")
    whole = checked(victim)
    assert whole.findings[0] == Finding("object-digest-mismatch", f"objects/{lost.path}", measured=measured)
    with Repository.open_path(victim.path) as repo:
        with pytest.raises(Enough):
            repo.fsck(progress=stop_at(stage, done))
        kept = json.loads((victim.path / SCRUB).read_text())
        seen: list[str] = []
        real = check.StreamCheck.check
        monkeypatch.setattr(check.StreamCheck, "check", lambda self, name: (seen.append(name), real(self, name))[1])
        assert repo.fsck(resume=True) == whole
    suspects = {name.removeprefix("streams/") for name in kept["suspects"]}
    streams = sorted(name for name in os.listdir(victim.path / "streams") if name != "refs")
    assert sorted(seen) == [name for name in streams if name > kept["stream"] or name in suspects]
    assert not (victim.path / SCRUB).exists()


def leave_position(victim: Victim, content: str) -> None:
    (victim.path / SCRUB).parent.mkdir(exist_ok=True)
    (victim.path / SCRUB).write_text(content)


def test_a_check_from_the_beginning_forgets_the_position(victim: Victim) -> None:
    victim.overwrite(victim.objects_of(victim.layers[0])[0], b"other content")
    everything = '{"version": 1, "stream": "zzz", "shard": 255, "suspects": []}'
    with Repository.open_path(victim.path) as repo:
        leave_position(victim, everything)
        assert repo.fsck(resume=True).findings == ()
        leave_position(victim, everything)
        assert repo.fsck().objects_corrupted == 1
    assert not (victim.path / SCRUB).exists()


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"version": 2, "stream": "z", "shard": 9, "suspects": []}', "[" * 9999]
)
def test_a_position_that_cannot_be_understood_is_none(content: str, victim: Victim) -> None:
    leave_position(victim, content)
    victim.overwrite(victim.objects_of(victim.layers[0])[0], b"other content")
    with Repository.open_path(victim.path) as repo:
        assert repo.fsck(resume=True).objects_corrupted == 1


def test_the_position_is_saved_now_and_then(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "_INTERVAL", -1.0)
    positions: list[str] = []

    def report(event: ProgressEvent) -> None:
        if (victim.path / SCRUB).exists():
            positions.append(json.loads((victim.path / SCRUB).read_text())["stream"])

    with Repository.open_path(victim.path) as repo:
        repo.fsck(progress=report)
    assert positions[0] < positions[-1]


def test_reading_is_not_faster_than_the_limit(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    class Event(check_run.threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            return self.is_set()

    monkeypatch.setattr(check_run.threading, "Event", Event)
    monkeypatch.setattr(check_run.time, "monotonic", lambda: 100.0)  # a clock that stands still
    with Repository.open_path(victim.path) as repo:
        state = state_of(repo)
        run = check_run.Run(state, limit=1000)
        run.pace(500)
        run.pace(250)
    assert waits == [0.5, 0.75]


def test_progress_tells_stages_in_their_order(victim: Victim) -> None:
    events: list[ProgressEvent] = []
    with Repository.open_path(victim.path) as repo:
        repo.fsck(progress=events.append)
    stages = [(event.stage, event.done, event.total) for event in events if isinstance(event, CheckProgress)]
    assert stages[3] == ("streams", 4, 4)
    assert stages[-2:] == [("objects", 256, 256), ("images", 1, 1)]


# -- the async form ----------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.usefixtures("no_leaks")
async def test_the_async_form_finds_the_same_and_reports_in_the_loop(victim: Victim) -> None:
    expected = checked(victim)
    here: list[int] = []
    async with await Repository.open_path_async(victim.path) as repo:
        found = await repo.fsck_async(progress=lambda event: here.append(threading.get_ident()))
    assert found == expected
    assert {*here} == {threading.get_ident()}


@pytest.mark.anyio
@pytest.mark.usefixtures("no_leaks")
async def test_a_cancellation_ends_a_check_and_keeps_its_position(victim: Victim) -> None:
    async with await Repository.open_path_async(victim.path) as repo:
        with anyio.CancelScope() as scope:

            def report(event: ProgressEvent) -> None:
                if isinstance(event, CheckProgress) and event.stage == "streams" and event.done == 2:
                    scope.cancel()

            await repo.fsck_async(limit=1 << 30, progress=report)
        assert scope.cancelled_caught
        assert await anyio.Path(victim.path / SCRUB).exists()
        assert (await repo.fsck_async(resume=True)).ok


def test_others_may_store_meanwhile(victim: Victim) -> None:
    def report(event: ProgressEvent) -> None:
        with Repository.open_path(victim.path, timeout=0) as other:
            other.ensure_object(b"from elsewhere")

    with Repository.open_path(victim.path) as repo:
        found = repo.fsck(progress=report)
    assert replace(found, objects_checked=0).findings == ()
