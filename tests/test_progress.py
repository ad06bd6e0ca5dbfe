"""Progress events, their JSON form, and their async iterator."""

from __future__ import annotations

import json
from typing import get_args

import anyio
import anyio.lowlevel
import pytest

from composefs_async.oci.progress_stream import ProgressStream
from composefs_async.progress import (
    BlobPushed,
    BytesFetched,
    BytesMoved,
    BytesRead,
    BytesSent,
    CheckProgress,
    CollectProgress,
    ImageMade,
    ImageTagged,
    ImportDone,
    ImportStarted,
    LayerDiffersFromPeers,
    LayerDone,
    LayerPartial,
    LayerSkipped,
    LayerStarted,
    ManifestStored,
    Message,
    ObjectsStored,
    PackSent,
    ProgressCallback,
    ProgressEvent,
    RateLimit,
    RefWritten,
    RegistryWarning,
    Retrying,
    SourceChosen,
    SourceFailed,
    TransferStarted,
    is_intermediate,
    to_json,
)
from composefs_async.results import ImportStats

STATS = {
    "objects_stored": 1,
    "objects_present": 0,
    "objects_replaced": 0,
    "bytes_stored": 0,
    "bytes_present": 0,
    "bytes_inline": 0,
    "layers_imported": 0,
    "layers_present": 0,
    "bytes_read": 0,
    "seconds": {"inflate": 0.5},
    "objects_reflinked": 0,
    "bytes_reflinked": 0,
}
RESULT = ImportStats(objects_stored=1, seconds={"inflate": 0.5})

EVENTS: list[tuple[ProgressEvent, dict[str, object], bool]] = [
    (
        ImportStarted("oci:x", "sha256:m", 2, 9),
        {"event": "import-started", "reference": "oci:x", "manifest_digest": "sha256:m", "layers": 2, "total": 9},
        False,
    ),
    (
        LayerStarted("sha256:a", "sha256:b", 9),
        {"event": "layer-started", "diff_id": "sha256:a", "digest": "sha256:b", "size": 9},
        False,
    ),
    (BytesRead("sha256:a", 1, 9), {"event": "bytes-read", "diff_id": "sha256:a", "fetched": 1, "total": 9}, True),
    (
        ObjectsStored("sha256:a", 1, 2),
        {"event": "objects-stored", "diff_id": "sha256:a", "stored": 1, "present": 2},
        True,
    ),
    (LayerSkipped("sha256:a"), {"event": "layer-skipped", "diff_id": "sha256:a"}, False),
    (LayerDone("sha256:a", RESULT), {"event": "layer-done", "diff_id": "sha256:a", "stats": STATS}, False),
    (ImageMade(1, "0a" * 32, 4096), {"event": "image-made", "version": 1, "image_id": "0a" * 32, "size": 4096}, False),
    (ManifestStored("sha256:m"), {"event": "manifest-stored", "digest": "sha256:m"}, False),
    (ImageTagged("t", "sha256:m"), {"event": "image-tagged", "tag": "t", "digest": "sha256:m"}, False),
    (ImportDone("sha256:m", RESULT), {"event": "import-done", "digest": "sha256:m", "stats": STATS}, False),
    (
        CheckProgress("objects", 3, 256, 4096),
        {"event": "check-progress", "stage": "objects", "done": 3, "total": 256, "read": 4096},
        True,
    ),
    (
        CollectProgress("compare", 3, 256),
        {"event": "collect-progress", "stage": "compare", "done": 3, "total": 256},
        True,
    ),
    (
        SourceChosen("docker://h/a", "m", True),
        {"event": "source-chosen", "reference": "docker://h/a", "host": "m", "mirror": True},
        False,
    ),
    (
        BytesFetched("sha256:a", "sha256:b", 5, 3, 9, 2),
        {
            "event": "bytes-fetched",
            "diff_id": "sha256:a",
            "digest": "sha256:b",
            "received": 5,
            "resumed": 3,
            "total": 9,
            "connections": 2,
        },
        True,
    ),
    (
        BytesSent("sha256:b", 5, 9),
        {"event": "bytes-sent", "digest": "sha256:b", "sent": 5, "total": 9},
        True,
    ),
    (
        BlobPushed("sha256:b", 9, "kept"),
        {"event": "blob-pushed", "digest": "sha256:b", "size": 9, "how": "kept"},
        False,
    ),
    (
        Retrying("blob", "h", 1, 5, 0.5, "503 from h"),
        {
            "event": "retrying",
            "what": "blob",
            "host": "h",
            "attempt": 1,
            "of": 5,
            "delay": 0.5,
            "reason": "503 from h",
        },
        False,
    ),
    (
        RateLimit("h", 100, 93, 21600, "u"),
        {"event": "rate-limit", "host": "h", "limit": 100, "remaining": 93, "window": 21600, "source": "u"},
        False,
    ),
    (RegistryWarning("h", "w"), {"event": "registry-warning", "host": "h", "text": "w"}, False),
    (
        LayerDiffersFromPeers("sha256:a", "a link with a size"),
        {"event": "layer-differs-from-peers", "diff_id": "sha256:a", "reason": "a link with a size"},
        False,
    ),
    (
        LayerPartial("sha256:a", 3, 9),
        {"event": "layer-partial", "diff_id": "sha256:a", "fetched": 3, "size": 9},
        False,
    ),
    (
        TransferStarted("s3://b/x", 4, 9, 2),
        {"event": "transfer-started", "reference": "s3://b/x", "objects": 4, "bytes": 9, "present": 2},
        False,
    ),
    (BytesMoved(5, 9, 2), {"event": "bytes-moved", "moved": 5, "total": 9, "objects": 2}, True),
    (SourceFailed("u", "404"), {"event": "source-failed", "source": "u", "reason": "404"}, False),
    (PackSent("sha256:p", 9, 3), {"event": "pack-sent", "digest": "sha256:p", "size": 9, "objects": 3}, False),
    (RefWritten("n", "sha256:m"), {"event": "ref-written", "name": "n", "digest": "sha256:m"}, False),
    (Message("hello"), {"event": "message", "text": "hello"}, False),
]


@pytest.mark.parametrize(
    ("event", "plain", "intermediate"), EVENTS, ids=[type(event).__name__ for event, _, _ in EVENTS]
)
def test_event_has_a_plain_form(event: ProgressEvent, plain: dict[str, object], intermediate: bool) -> None:
    assert to_json(event) == plain
    assert next(iter(to_json(event))) == "event"
    assert json.loads(json.dumps(to_json(event))) == plain
    assert is_intermediate(event) is intermediate


def test_all_events_are_tested() -> None:
    assert {type(event) for event, _, _ in EVENTS} == set(get_args(ProgressEvent))


# -- as an async iterator ----------------------------------------------------------------------


async def drained(progress: ProgressStream) -> list[ProgressEvent]:
    progress.close()
    return [event async for event in progress]


@pytest.mark.anyio
async def test_unread_intermediate_events_are_replaced_and_others_kept() -> None:
    progress = ProgressStream()
    report: ProgressCallback = progress
    given: list[ProgressEvent] = [
        LayerStarted("a", "x", 9),
        BytesRead("a", 1, 9),
        Message("m"),
        ObjectsStored("a", 1, 0),
        BytesRead("b", 1, 9),
        BytesRead("a", 5, 9),
        Message("m"),
        BytesRead("a", 9, 9),
        LayerDone("a", RESULT),
    ]
    for event in given:
        report(event)
    assert await drained(progress) == [
        LayerStarted("a", "x", 9),
        Message("m"),
        ObjectsStored("a", 1, 0),
        BytesRead("b", 1, 9),
        Message("m"),
        BytesRead("a", 9, 9),
        LayerDone("a", RESULT),
    ]


@pytest.mark.anyio
async def test_what_is_unread_stays_small() -> None:
    progress = ProgressStream()
    for count in range(100_000):
        progress(BytesRead("a", count, 100_000))
        progress(ObjectsStored("a", count, 0))
    assert await drained(progress) == [BytesRead("a", 99_999, 100_000), ObjectsStored("a", 99_999, 0)]


@pytest.mark.anyio
async def test_reader_sees_events_while_the_worker_works() -> None:
    progress = ProgressStream()
    seen: list[ProgressEvent] = []

    async def work() -> None:
        with progress:
            for count in range(3):
                progress(BytesRead("a", count, 3))
                await anyio.wait_all_tasks_blocked()
                assert seen[-1] == BytesRead("a", count, 3)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        while event := await anext(progress, None):
            seen.append(event)
    assert seen == [BytesRead("a", count, 3) for count in range(3)]


@pytest.mark.anyio
async def test_iteration_ends_when_the_worker_fails() -> None:
    progress = ProgressStream()
    seen: list[ProgressEvent] = []

    def fail() -> None:
        with progress:
            progress(Message("last"))
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    with anyio.fail_after(5):
        seen = [event async for event in progress]
    assert seen == [Message("last")]


@pytest.mark.anyio
async def test_events_after_the_end_are_dropped() -> None:
    progress = ProgressStream()
    progress(Message("one"))
    progress.close()
    progress.close()
    progress(Message("two"))
    assert [event async for event in progress] == [Message("one")]


@pytest.mark.anyio
async def test_reading_lets_other_tasks_run_also_when_events_wait() -> None:
    progress = ProgressStream()
    for number in range(50):
        progress(Message(str(number)))
    progress.close()
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(count)
        assert len([event async for event in progress]) == 50
        tasks.cancel_scope.cancel()
    assert turns >= 25


@pytest.mark.anyio
async def test_cancelled_reader_loses_nothing() -> None:
    progress = ProgressStream()
    with anyio.move_on_after(0):
        await anext(progress)
    progress(Message("kept"))
    with anyio.CancelScope() as scope:
        scope.cancel()
        await anext(progress)
    assert await drained(progress) == [Message("kept")]
