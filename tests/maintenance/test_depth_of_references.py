"""One limit on the depth of references: what can be made can be seen by everybody, and deeper ones hide nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from composefs_async._repo.walk import MAX_DEPTH
from composefs_async.errors import InvalidNameError, ReachUnknownError
from composefs_async.repository import Repository

from .garbage import image, links, objects, stream

DEEPEST = "/".join(["d"] * MAX_DEPTH + ["name"])


@pytest.mark.parametrize("reference", ["/".join(["d"] * slashes + ["name"]) for slashes in (0, 64, 65, MAX_DEPTH)])
def test_every_reference_that_can_be_made_is_seen(empty: Repository, reference: str) -> None:
    kept, picture = stream(empty, "kept", ["a"], reference=reference), image(empty, ["b"], reference)
    assert empty.named_streams() == [(reference, "kept")]
    assert empty.named_images() == [(reference, picture.hex())]
    assert [(each.category, each.name) for each in empty.references()] == [
        ("images", reference),
        ("streams", reference),
    ]
    assert empty.gc().objects_removed == 0
    assert empty.fsck().ok
    assert objects(empty) == {"a", "b", kept.hex(), picture.hex()}


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        (f"d/{DEEPEST}", f"it has {MAX_DEPTH + 1} slashes, more than {MAX_DEPTH}"),
        ("/".join(["d" * 255] * 16), "it is longer than 4082 bytes"),
    ],
)
def test_deeper_and_longer_ones_are_refused_and_leave_nothing(empty: Repository, reference: str, reason: str) -> None:
    stream(empty, "kept", reference="name")
    before = sorted(Path(empty.path).rglob("*"))
    for make in (
        lambda: empty.name_stream("kept", reference),
        lambda: empty.add_reference("streams", reference, "kept"),
        lambda: empty.rename_reference("streams", "name", reference),
    ):
        with pytest.raises(InvalidNameError) as caught:
            make()
        assert caught.value.reason == reason
    assert sorted(Path(empty.path).rglob("*")) == before


def test_longest_reference_can_be_made(empty: Repository) -> None:
    reference = "/".join(["d" * 254] * 16 + ["e" * 2])
    assert len(reference) == 4082
    stream(empty, "kept", reference=reference)
    assert empty.named_streams() == [(reference, "kept")]
    assert empty.fsck().ok


def test_deeper_one_of_another_program_stops_gc_alone(empty: Repository) -> None:
    stream(empty, "kept", ["a"], reference="name")
    stream(empty, "dead", ["b"])
    deep = f"d/{DEEPEST}"
    place = Path(empty.path, "streams/refs", deep)
    place.parent.mkdir(parents=True)
    os.symlink("../" * (MAX_DEPTH + 2) + "kept", place)
    before = objects(empty), links(empty)
    with pytest.raises(ReachUnknownError, match=f"it is more than {MAX_DEPTH} directories deep"):
        empty.gc()
    assert (objects(empty), links(empty)) == before
    assert empty.named_streams() == [("name", "kept")]
    assert [each.name for each in empty.references()] == ["name"]
    assert [each.kind for each in empty.fsck().findings] == ["unexpected-file-type"]
    assert empty.remove_reference("streams", deep)
    place.parent.rmdir()
    assert empty.gc().objects_removed == 2
    assert empty.fsck().ok
