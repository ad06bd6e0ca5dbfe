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
from composefs_async._maintenance.fsck import check, checkpoint, chunks, object_reader
from composefs_async._maintenance.fsck import content as check_content
from composefs_async._maintenance.fsck import context as check_run
from composefs_async._sys import verity
from composefs_async._zstd import zstd
from composefs_async.digest import Algorithm, ObjectId
from composefs_async.errors import AlgorithmMismatchError, VerityMissingError
from composefs_async.findings import Finding
from composefs_async.naming import layer_stream
from composefs_async.progress import CheckProgress, ProgressEvent
from composefs_async.repository import Repository, state_of
from composefs_async.results import FsckResult

from ..maintenance.corruptions import ANY, Victim, config_refers_to_another_layer_that_has_no_name
from ..maintenance.generations import VECTORS

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

    monkeypatch.setattr(object_reader, "NATIVE", False)
    monkeypatch.setattr(verity, "measure", measure)
    with Repository.open_path(victim.path) as repo:
        state_of(repo).secure = True
        found = repo.fsck()
    assert found.findings == (Finding(kind, f"objects/{strange.path}", **fields),)
    assert found.objects_corrupted == 1


# -- what only references lead to --------------------------------------------------------------


def malformed(victim: Victim) -> tuple[bytes, str]:
    return b"no stream", "the file ends inside the header of 32 bytes (splitstream offset 9)"


def without_its_end(victim: Victim) -> tuple[bytes, str]:
    tar = victim.tars[0].rstrip(b"\0")
    kept = tar + bytes(-len(tar) % 512 + 1024)
    what = f"the last {len(victim.tars[0]) - len(kept)} bytes of the tar, all zeros, were not kept"
    return victim.stream("made", kept), what


def of_another_size(victim: Victim) -> tuple[bytes, str]:
    file = bytearray(victim.stream("made", victim.tars[0]))
    file[104:112] = (99).to_bytes(8, "little")
    return bytes(file), f"the stream claims 99 bytes, but has {len(victim.tars[0])}"


def whole(victim: Victim) -> tuple[bytes, str]:
    return victim.stream("made", victim.tars[0]), ""


@pytest.mark.parametrize("make", [malformed, without_its_end, of_another_size, whole])
def test_layers_without_a_name_are_compared_with_what_refers_to_them(
    make: Callable[[Victim], tuple[bytes, str]], victim: Victim
) -> None:
    content, detail = make(victim)
    object_id, layer = victim.store(content), victim.diff_ids[0]
    (victim.path / "streams/made").unlink(missing_ok=True)
    victim.rewrite(layers={layer: object_id})
    fields = {"name": layer, "object_id": object_id, "detail": detail}
    if make is of_another_size:
        fields["expected"] = "99"
    expected = [Finding("named-stream-invalid", victim.config_path, **fields)] if detail else []
    assert [*checked(victim).findings] == expected


def test_a_layer_without_a_name_that_lacks_an_object_is_not_to_blame(victim: Victim) -> None:
    lost = victim.objects_of(victim.layers[0])[0]
    file = victim.stream("made", victim.tars[0])  # the same content, and none of it in objects
    victim.link_to(victim.layers[0], victim.store(file))
    (victim.path / "streams/made").unlink()
    victim.object(lost).unlink()
    assert checked(victim).findings == (
        Finding("missing-object-ref", victim.config_path, object_id=lost),
        Finding("image-missing-object", f"images/{victim.image}", object_id=lost),
    )


def test_a_layer_without_a_name_may_be_known_by_its_packed_form(victim: Victim) -> None:
    name = layer_stream(victim.artifact())
    (victim.path / "streams" / name).unlink()
    assert [each.kind for each in checked(victim).findings] == ["named-ref-unlinked"]


def test_what_a_config_without_a_name_refers_to_is_compared_too(victim: Victim) -> None:
    layer, other = victim.diff_ids[0], victim.id_of(victim.layers[1])
    config, refs = victim.payload(victim.config_path), victim.refs_of(victim.config_path)
    victim.document("config", config, {**refs, layer: other})
    in_manifest = {**victim.refs_of(victim.manifest_path), f"config:{victim.config}": victim.id_of(victim.config_path)}
    victim.document("manifest", victim.payload(victim.manifest_path), in_manifest)
    victim.document("config", config, refs)  # takes the name
    fields = {"name": layer, "object_id": other, "expected": layer}
    detail = f"the content has the digest {victim.diff_ids[1]}"
    assert checked(victim).findings == (Finding("named-stream-invalid", victim.manifest_path, **fields, detail=detail),)


def test_references_of_which_nobody_knows_more_may_lead_to_anything(victim: Victim) -> None:
    victim.stream("mine", b"content", {"mine": victim.store(b"no stream")})
    assert checked(victim).findings == ()
    file = bytearray(victim.stream("other", b"content"))
    file[104:112] = (99).to_bytes(8, "little")
    (victim.path / "streams/other").unlink()
    victim.stream("mine", b"content", {"other": (object_id := victim.store(bytes(file)))})
    detail = {"detail": "the stream claims 99 bytes, but has 7", "expected": "99"}
    finding = Finding("named-stream-invalid", "streams/mine", name="other", object_id=object_id, **detail)
    assert checked(victim).findings == (finding,)


# -- what ends a check -------------------------------------------------------------------------


def test_errors_that_say_nothing_about_the_repository_are_raised(
    victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    def merge(*args: object) -> chunks.Merged:
        return chunks.Merged(chunks.Status.FULL, 8, 0, 0, 0, [object_reader.Failure(0, errno.EMFILE, "open")])

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


@pytest.mark.parametrize("done", [2, 4])
def test_a_check_that_goes_on_looks_at_what_only_references_lead_to(done: int, victim: Victim) -> None:
    config_refers_to_another_layer_that_has_no_name(victim)
    image = victim.store(b"no image")
    victim.link_to(f"images/{image.hex()}", ObjectId.from_hex(victim.image))
    victim.stream("a", b"content", {"composefs.image": image})
    whole = checked(victim)
    assert [each.kind for each in whole.findings] == [
        "named-image-invalid",
        "named-stream-invalid",
        "image-name-mismatch",
    ]
    with Repository.open_path(victim.path) as repo:
        with pytest.raises(Enough):
            repo.fsck(progress=stop_at("streams", done))
        assert repo.fsck(resume=True) == whole


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

        def spy(self: check.StreamCheck, name: str, *, content: bool = True) -> None:
            if content:
                seen.append(name)
            real(self, name, content=content)

        monkeypatch.setattr(check.StreamCheck, "check", spy)
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
    monkeypatch.setattr(checkpoint, "_INTERVAL", -1.0)
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
