"""Pulls of zstd:chunked layers of which the repository has most files: what is fetched, and what lies get."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from composefs_async import Repository, oci
from composefs_async._zstd import zstd
from composefs_async.errors import TransportError
from composefs_async.oci import stored_layers
from composefs_async.oci.documents import Descriptor
from composefs_async.oci.sources.chunked.toc import Section, find_positions
from composefs_async.progress import LayerPartial, Message, ProgressEvent
from composefs_async.registry.access import Access
from composefs_async.testing.registry import FakeRegistry, Fault

from .chunked import PREFIX, ChunkedImage, ChunkedLayer, content, digest_of, make_chunked, tar_of
from .conftest import QUICK

pytestmark = pytest.mark.anyio

VECTORS = Path(__file__).parent.parent / "vectors" / "zstd_chunked"
TRANSFER = replace(QUICK, partial_size=100_000)


SIZE = 10_000
FILES = {f"usr/file{number:03}": content(number, SIZE) for number in range(60)}
UPDATED = {**FILES, **{f"usr/file{number:03}": content(1000 + number, SIZE) for number in range(0, 60, 10)}}
FIRST = make_chunked(tar_of(FILES))


def update(**options: Any) -> ChunkedLayer:
    """The layer with a tenth of its files changed, packed by `make_chunked`."""
    return make_chunked(tar_of(UPDATED), **options)


class Pulls:
    """A registry with images, and a repository that they are pulled to."""

    def __init__(self, repo: Repository, access: Access) -> None:
        self.repo, self.access = repo, access
        self.registry, self.events = FakeRegistry(), list[ProgressEvent]()

    async def pull(self, layer: ChunkedLayer, tag: str, **options: Any) -> Any:
        ChunkedImage([layer]).put(self.registry, tag)
        self.events.clear()
        self.registry.seen.clear()
        async with self.registry.serving() as host:
            transfer = replace(TRANSFER, **options)
            name = f"docker://{host}/a/b:{tag}"
            return await oci.pull(
                self.repo, name, tag=tag, access=self.access, transfer=transfer, progress=self.events.append
            )

    def told(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Message)]

    def partly(self) -> bool:
        return any(isinstance(event, LayerPartial) for event in self.events)

    async def require(self, layer: ChunkedLayer) -> None:
        """The repository has the layer, bit for bit, and is sound."""
        found = b"".join([piece async for piece in stored_layers.layer_content_async(self.repo, layer.diff_id)])
        assert found == layer.tar
        assert (await self.repo.fsck_async()).errors == ()


@pytest.fixture
def pulls(repo: Repository, access: Access) -> Pulls:
    return Pulls(repo, access)


async def test_an_update_fetches_what_has_changed(pulls: Pulls, no_blocking: object) -> None:
    first, second = FIRST, update()
    result = await pulls.pull(first, "one")
    assert (result.bytes_fetched, result.layers[0].packed_verified) == (len(first.blob), True)
    result = await pulls.pull(second, "two")
    assert result.bytes_fetched < 0.15 * len(second.blob)
    assert result.layers[0].packed_verified is False
    assert (result.stats.objects_stored, result.stats.objects_present) == (6, 54)
    (partial,) = [event for event in pulls.events if isinstance(event, LayerPartial)]
    assert (partial.diff_id, partial.fetched, partial.size) == (
        second.diff_id,
        result.bytes_fetched,
        len(second.blob),
    )
    await pulls.require(second)
    # What came in parts is known by its content, too.
    third = make_chunked(tar_of({**UPDATED, "usr/new": b"new"}))
    result = await pulls.pull(third, "three")
    assert result.bytes_fetched < 0.08 * len(third.blob)
    await pulls.require(third)


async def test_images_of_podman_s_own_writer(repo: Repository, access: Access, tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(zstd.decompress((VECTORS / "images.tar.zst").read_bytes()))) as archive:
        archive.extractall(tmp_path, filter="data")
    registry = FakeRegistry()
    manifests: dict[str, Any] = {}
    for tag in ("one", "two"):
        index = json.loads((tmp_path / tag / "index.json").read_bytes())
        digest = index["manifests"][0]["digest"][7:]
        for blob in (tmp_path / tag / "blobs/sha256").iterdir():
            registry.put_blob("a/b", blob.read_bytes())
        raw = (tmp_path / tag / "blobs/sha256" / digest).read_bytes()
        registry.put_manifest("a/b", tag, raw)
        manifests[tag] = json.loads(raw)
    async with registry.serving() as host:
        for tag in ("one", "two"):
            result = await oci.pull(repo, f"docker://{host}/a/b:{tag}", access=access, transfer=QUICK)
    large, small = (layer["size"] for layer in manifests["two"]["layers"])
    assert (large, small) == (1_599_008, 4088)
    # 361 kB of the files are in no layer of `one`.
    assert result.bytes_fetched - small < 0.25 * large
    assert [layer.packed_verified for layer in result.layers] == [False, True]
    assert (await repo.fsck_async()).errors == ()


async def test_a_layer_with_a_name_that_is_not_utf_8_comes_whole(repo: Repository, access: Access) -> None:
    blob = (VECTORS / "zero.zst").read_bytes()
    annotations = json.loads((VECTORS / "zero.json").read_bytes())
    tar = zstd.decompress(blob[: int(annotations[f"{PREFIX}manifest-position"].split(":")[0]) - 8])
    layer = ChunkedLayer(tar, blob, annotations, {})
    pulls = Pulls(repo, access)
    await pulls.pull(FIRST, "one")
    await pulls.pull(layer, "zero", partial_size=1)
    assert (pulls.partly(), len(pulls.told())) == (False, 1)
    assert "has been replaced; the whole layer is fetched" in pulls.told()[0]
    await pulls.require(layer)


async def test_a_pull_that_was_stopped_goes_on_with_its_parts(pulls: Pulls) -> None:
    more = {f"usr/more{number}": content(2000 + number, SIZE) for number in range(60)}
    second = make_chunked(tar_of({**UPDATED, **more}))  # of more than a mebibyte, which gets a file of its own
    await pulls.pull(make_chunked(tar_of({**FILES, **more})), "one")
    pulls.registry.faults = [Fault("GET .*/blobs/", only_with="range", skip=5, status=503, times=-1)]
    with pytest.raises(TransportError):
        await pulls.pull(second, "two", retries=0, connections=1)
    pulls.registry.faults = []
    result = await pulls.pull(second, "two")
    assert result.bytes_resumed > 20_000
    assert result.bytes_fetched + result.bytes_resumed < 0.15 * len(second.blob)
    await pulls.require(second)


WHOLE = {
    "it is said so": ({"partial": False}, {}),
    "blobs are kept": ({"keep_blobs": True}, {}),
    "it is small": ({"partial_size": 100 << 20}, {}),
    "without a file to arrive in": ({"spool": False, "partial_size": 1}, {}),
}


@pytest.mark.parametrize("options", [case[0] for case in WHOLE.values()], ids=list(WHOLE))
async def test_the_whole_layer_is_fetched_when(pulls: Pulls, options: dict[str, Any]) -> None:
    second = update() if "spool" not in options else make_chunked(tar_of({**UPDATED, "x": content(1, 9 << 20)}))
    await pulls.pull(FIRST, "one")
    result = await pulls.pull(second, "two", **options)
    assert (pulls.partly(), pulls.told()) == (False, [])
    assert (result.bytes_fetched, result.layers[0].packed_verified) == (len(second.blob), True)
    await pulls.require(second)


async def test_a_repository_that_knows_nothing_asks_for_no_table(pulls: Pulls) -> None:
    first = FIRST
    await pulls.pull(first, "one")
    assert [seen.headers.get("range") for seen in pulls.registry.seen if "/blobs/" in seen.target] == [None, None]


async def test_nothing_in_common_fetches_all(pulls: Pulls) -> None:
    other = make_chunked(tar_of({f"other{number}": content(5000 + number, SIZE) for number in range(50)}))
    await pulls.pull(FIRST, "one")
    result = await pulls.pull(other, "two")
    assert (pulls.partly(), pulls.told(), result.bytes_fetched) == (False, [], len(other.blob))
    await pulls.require(other)


@pytest.mark.parametrize("fault", [{"ignore_range": True}, {"status": 416, "only_with": "range"}])
async def test_a_registry_that_gives_no_parts(pulls: Pulls, fault: dict[str, Any]) -> None:
    second = update()
    await pulls.pull(FIRST, "one")
    pulls.registry.faults = [Fault("GET .*/blobs/", times=-1, **fault)]
    result = await pulls.pull(second, "two")
    assert (pulls.partly(), result.layers[0].packed_verified) == (False, True)
    assert pulls.told() == [f"layer {second.diff_id}: the registry gives no parts of blobs; the whole layer is fetched"]
    await pulls.require(second)


# -- lies --------------------------------------------------------------------------------------


def entry(number: int, **members: Any) -> Callable[[Any], object]:
    return lambda toc: toc["entries"][number].update(members)


def swapped(toc: Any) -> None:
    """Two files that have not changed are each other."""
    one, other = toc["entries"][1], toc["entries"][2]
    one["digest"], other["digest"] = other["digest"], one["digest"]


def annotated(name: str, change: Callable[[str], str]) -> Callable[[Any], object]:
    return lambda found: found.update({f"{PREFIX}{name}": change(found[f"{PREFIX}{name}"])})


def unpacked_to(name: str, size: int) -> Callable[[Any], object]:
    """The annotation says that a section unpacks to *size* bytes."""

    def change(text: str) -> str:
        parts = text.split(":")
        return ":".join([*parts[:2], str(size), *parts[3:]])

    return annotated(name, change)


BEFORE: dict[str, tuple[dict[str, Any], str]] = {
    "another table": ({"annotations": annotated("manifest-checksum", lambda _: digest_of(b""))}, "expected digest"),
    "a table that unpacks to more": ({"annotations": unpacked_to("manifest-position", 100)}, "unpacked bytes"),
    "a tar-split that unpacks to more": ({"annotations": unpacked_to("tarsplit-position", 100)}, "unpacked bytes"),
    "another tar-split": ({"toc": lambda toc: toc.update(tarSplitDigest=digest_of(b""))}, "tar-split"),
    "no tar-split": ({"toc": lambda toc: toc.pop("tarSplitDigest")}, "does not say"),
    "version 2": ({"toc": lambda toc: toc.update(version=2)}, "none of version 1"),
    "no JSON": ({"raw_toc": b"{"}, "not valid"),
    "no object": ({"raw_toc": b"[]"}, "none of version 1"),
    "no UTF-8": ({"raw_toc": b"\xff"}, "not UTF-8"),
    "deep": ({"raw_toc": b"[" * 200_000}, "nested too deeply"),
    "a key twice": ({"raw_toc": b'{"entries": [], "entries": []}'}, "occurs twice"),
    "no entries": ({"toc": lambda toc: toc.update(entries={})}, "none of version 1"),
    "no digest": ({"toc": entry(3, digest=None)}, "lacks its name"),
    "another algorithm": ({"toc": entry(3, digest="sha512:" + "0" * 128)}, "lacks its name"),
    "no place": ({"toc": entry(3, offset="5")}, "lacks its name"),
    "a negative size": ({"toc": entry(3, size=-5)}, "lacks its name"),
    "a size that is true": ({"toc": entry(3, size=True)}, "lacks its name"),
    "half a surrogate pair": ({"toc": entry(3, name="\ud800")}, "surrogate"),
    "a file before the one before it": ({"toc": entry(3, offset=0)}, "not behind"),
    "a file that ends before it begins": ({"toc": entry(3, endOffset=5)}, "not behind"),
    "a file in the table": ({"toc": entry(59, endOffset=1 << 40)}, "not behind"),
    "another name": ({"toc": entry(3, name="usr/other")}, "where its table of contents has"),
    "another size": ({"toc": entry(3, size=SIZE - 1)}, "where its table of contents has"),
    "a size beyond belief": ({"toc": entry(3, size=1 << 62)}, "where its table of contents has"),
    "a file less": ({"toc": lambda toc: toc["entries"].pop()}, "where its table of contents has nothing"),
    "a file more": ({"lines": lambda lines: lines.pop(-2)}, "a file more"),
    "a line that is none": ({"lines": lambda lines: lines[4].update(type=7)}, "damaged at line"),
}
"""Seen in what is fetched first: what was changed, and what is told."""


@pytest.mark.parametrize(("options", "words"), BEFORE.values(), ids=BEFORE)
async def test_a_table_that_cannot_be_used(pulls: Pulls, options: dict[str, Any], words: str) -> None:
    layer = update(**options)
    await pulls.pull(FIRST, "one")
    result = await pulls.pull(layer, "two")
    assert (pulls.partly(), len(pulls.told())) == (False, 1)
    assert pulls.told()[0].endswith("; the whole layer is fetched")
    assert words in pulls.told()[0]
    assert (result.bytes_fetched, result.layers[0].packed_verified) == (len(layer.blob), True)
    await pulls.require(layer)


WHILE: dict[str, tuple[dict[str, Any], str]] = {
    "two files that are each other": ({"toc": swapped}, "a table of contents is wrong"),
    "a file that is here instead of a new one": (
        {"toc": entry(10, digest=digest_of(FILES["usr/file001"]))},
        "a table of contents is wrong",
    ),
    "a new file of another digest": ({"toc": entry(10, digest=digest_of(b""))}, "usr/file010"),
    "a new file that is only half there": (
        {"toc": lambda toc: toc["entries"][10].update(endOffset=toc["entries"][10]["endOffset"] - SIZE // 2)},
        "zstd",
    ),
    "other bytes between files": (
        {"lines": lambda lines: lines[4].update(payload=lines[2]["payload"])},
        "a table of contents is wrong",
    ),
}
"""Seen only while the layer is put together."""


@pytest.mark.parametrize(("options", "words"), WHILE.values(), ids=WHILE)
async def test_a_lie_costs_time_and_never_content(pulls: Pulls, options: dict[str, Any], words: str) -> None:
    layer = update(**options)
    await pulls.pull(FIRST, "one")
    result = await pulls.pull(layer, "two")
    assert (pulls.partly(), len(pulls.told())) == (True, 1)
    assert "put together of parts" in pulls.told()[0]
    assert words in pulls.told()[0]
    assert (result.bytes_fetched <= 1.2 * len(layer.blob), result.layers[0].packed_verified) == (True, True)
    await pulls.require(layer)


def put_other_content(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(b"x" * path.stat().st_size)


async def test_a_file_in_the_repository_that_is_damaged(pulls: Pulls) -> None:
    await pulls.pull(FIRST, "one")
    stored = await pulls.repo.ensure_object_async(FILES["usr/file001"])
    path = Path(pulls.repo.path, "objects", stored.id.path)
    put_other_content(path)
    result = await pulls.pull(update(), "two")
    assert (pulls.partly(), result.layers[0].packed_verified) == (True, True)
    assert "a table of contents is wrong, or a file in the repository" in pulls.told()[0]
    os.unlink(path)
    layer = make_chunked(tar_of({**UPDATED, "usr/new": b"new"}))
    assert (await pulls.pull(layer, "three")).layers[0].packed_verified is False
    await pulls.require(layer)


# -- the annotations ---------------------------------------------------------------------------

TOC, SPLIT, SUM = f"{PREFIX}manifest-position", f"{PREFIX}tarsplit-position", f"{PREFIX}manifest-checksum"
GOOD = {TOC: "1000:50:200:1", SPLIT: "1058:40:300", SUM: digest_of(b"x")}
ANNOTATIONS = [
    ({}, True),
    ({SPLIT: "900:92:300"}, True),
    ({TOC: None}, False),
    ({SPLIT: None}, False),
    ({SUM: None}, False),
    ({SUM: "sha512:" + "0" * 128}, False),
    ({SUM: "sha256:" + "0" * 63}, False),
    ({TOC: "1000:50:200:2"}, False),
    ({TOC: "1000:50:200"}, False),
    ({TOC: "1000:50:-200:1"}, False),
    ({TOC: "1000:0:200:1"}, False),
    ({TOC: "1000:50:99999999999:1"}, False),
    ({TOC: "1000:50:200:1:1"}, False),
    ({TOC: "9" * 400 + ":50:200:1"}, False),
    ({SPLIT: "1020:40:300"}, False),
    ({SPLIT: "9000:40:300"}, False),
    ({SPLIT: "4000:40:300"}, False),
    ({"containerd.io/snapshot/stargz/toc.digest": digest_of(b"")}, False),
]


@pytest.mark.parametrize(("changes", "good"), ANNOTATIONS)
async def test_annotations(changes: dict[str, str | None], good: bool) -> None:
    annotations = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    found = find_positions(Descriptor("t", digest_of(b"y"), 5000, annotations=annotations))
    assert (found is not None) is good
    if found is not None and not changes:
        assert (found.toc, found.split) == (Section(1000, 50, 200), Section(1058, 40, 300))
