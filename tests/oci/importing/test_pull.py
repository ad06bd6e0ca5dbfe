"""Whole images into a repository: what is published, in which order, how often it is read, and what is reported."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from composefs_async.digest import Algorithm, sha256_content_digest
from composefs_async.errors import DigestMismatchError
from composefs_async.naming import IMAGE_V1_REF, config_ref, layer_stream
from composefs_async.oci.catalogue import open_image
from composefs_async.oci.erofs_images import Documents, publish_image
from composefs_async.oci.importing.layers import import_layer
from composefs_async.oci.importing.pull import pull
from composefs_async.oci.importing.pull_result import PullResult
from composefs_async.oci.layout_writer import OciLayoutWriter
from composefs_async.oci.limits import Limits
from composefs_async.oci.platforms import Platform
from composefs_async.oci.sources import OciLayoutSource
from composefs_async.oci.stored_layers import layer_info
from composefs_async.oci.tar.writer import WrittenLayer
from composefs_async.progress import (
    ImageMade,
    ImageTagged,
    ImportDone,
    ImportStarted,
    LayerDone,
    LayerSkipped,
    LayerStarted,
    ManifestStored,
    ProgressEvent,
    is_intermediate,
)
from composefs_async.repository import Repository, state_of
from composefs_async.results import ImportStats
from composefs_async.splitstream import OCI_BLOB, OCI_LAYER

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leaks")]

PLATFORM = Platform("linux", "amd64")


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed * 1_000_003 + size).randbytes(size)


def archive(*sizes: int, seed: int = 0) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for number, size in enumerate(sizes):
            info = tarfile.TarInfo(f"no/parents/f{number}")
            info.size = size
            made.addfile(info, io.BytesIO(content(size, seed)))
    return out.getvalue()


def tree(path: Path) -> dict[str, bytes | str]:
    """The whole repository: content of files, targets of links."""
    found: dict[str, bytes | str] = {}
    for entry in sorted(path.rglob("*")):
        name = str(entry.relative_to(path))
        if entry.is_symlink():
            found[name] = str(entry.readlink())
        elif entry.is_file():
            found[name] = entry.read_bytes()
    return found


def times(path: Path) -> dict[str, tuple[int, int]]:
    return {str(entry): (entry.lstat().st_ino, entry.lstat().st_mtime_ns) for entry in path.rglob("*")}


def links(path: Path) -> list[str]:
    return sorted(str(entry.relative_to(path)) for entry in path.rglob("*") if entry.is_symlink())


def init(path: Path, algorithm: Algorithm = Algorithm.SHA256) -> Repository:
    return Repository.init(path, algorithm=algorithm, insecure=True)


def blob(directory: Path, digest: str) -> Path:
    return directory / "blobs" / digest.replace(":", "/")


def finals(events: list[ProgressEvent]) -> list[ProgressEvent]:
    return [event for event in events if not is_intermediate(event)]


Image = tuple[str, list[WrittenLayer]]


@pytest.fixture
def image(tmp_path: Path) -> Image:
    """Three layers, the middle one the largest, each packed in another way."""
    writer = OciLayoutWriter(tmp_path / "image")
    layers = [
        writer.add_layer(archive(3000, 10, seed=1), "gzip"),
        writer.add_layer(archive(100_000, 700_000, seed=2), "zstd"),
        writer.add_layer(archive(5000, 3000, seed=3), "none"),
    ]
    writer.add_image(layers, platform=PLATFORM)
    return f"oci:{tmp_path}/image:latest", layers


async def take(repo: Repository, reference: str, **options: Any) -> PullResult:
    return await pull(repo, reference, platform=PLATFORM, **options)


# -- what is published -------------------------------------------------------------------------


@pytest.mark.usefixtures("no_blocking")
@pytest.mark.parametrize("algorithm", Algorithm)
async def test_image_is_published_whole(algorithm: Algorithm, image: Image, tmp_path: Path) -> None:
    reference, layers = image
    repo = await Repository.init_async(tmp_path / "repo", algorithm=algorithm, insecure=True)
    async with repo:
        result = await take(repo, reference, tag="name/of:it")
        names = [f"oci-layer-{layer.diff_id}" for layer in layers]
        config, manifest = f"oci-config-{result.config_digest}", f"oci-manifest-{result.manifest_digest}"

        def check() -> None:
            assert result.image_id is not None
            assert links(tmp_path / "repo") == sorted(
                [
                    f"images/{result.image_id}",
                    "streams/refs/oci/name%2Fof:it",
                    *(f"streams/{name}" for name in [*names, config, manifest]),
                ]
            )
            for name, layer in zip(names, layers, strict=True):
                merged = b"".join(repo.merge_splitstream(name, content_type=OCI_LAYER))
                assert sha256_content_digest(merged) == layer.diff_id
            for name, digest in ((config, result.config_digest), (manifest, result.manifest_digest)):
                assert sha256_content_digest(b"".join(repo.merge_splitstream(name))) == digest
            with repo.open_stream(config) as reader:
                refs = {layer.diff_id: layer.stream_id for layer in result.layers}
                assert dict(reader.named_refs) == refs | {IMAGE_V1_REF: result.image_id}
            with repo.open_stream("refs/oci/name%2Fof:it") as reader:
                assert dict(reader.named_refs) == {config_ref(result.config_digest): result.config_id} | refs

        await anyio.to_thread.run_sync(check)
    assert (result.tag, [layer.diff_id for layer in result.layers]) == (
        "name/of:it",
        [layer.diff_id for layer in layers],
    )


async def test_statistics_are_the_sum_of_the_layers(image: Image, tmp_path: Path) -> None:
    reference, layers = image
    with init(tmp_path / "repo") as repo:
        result = await take(repo, reference)
    packed = sum(layer.descriptor.size for layer in layers)
    external = 3000 + 100_000 + 700_000 + 5000 + 3000
    sizes = [len(archive(3000, 10)), len(archive(100_000, 700_000)), len(archive(5000, 3000))]
    stats = result.stats
    seconds = dict(stats.seconds)
    assert set(seconds) == {"unpack", "hash", "split", "store", "finish", "tree"}
    assert stats == ImportStats(
        objects_stored=5,
        bytes_stored=external,
        bytes_inline=sum(sizes) - external,
        layers_imported=3,
        bytes_read=packed,
        seconds=seconds,
    )


async def test_trees_of_two_pulls_are_equal_to_the_byte(image: Image, tmp_path: Path) -> None:
    for name in ("one", "two"):
        with init(tmp_path / name) as repo:
            await take(repo, image[0], tag="t")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


@pytest.mark.usefixtures("no_blocking")
async def test_second_pull_reads_no_layer_and_changes_nothing(image: Image, tmp_path: Path) -> None:
    reference, layers = image
    repo = await Repository.init_async(tmp_path / "repo", algorithm=Algorithm.SHA256, insecure=True)
    async with repo:
        first = await take(repo, reference)
        for layer in layers:
            blob(tmp_path / "image", layer.descriptor.digest).unlink()
        before, flushes = times(tmp_path / "repo"), state_of(repo).syncs.count
        events: list[ProgressEvent] = []
        again = await take(repo, reference, progress=events.append)
        assert state_of(repo).syncs.count == flushes
    assert times(tmp_path / "repo") == before
    assert again.stats == ImportStats(layers_present=3)
    assert all(layer.present for layer in again.layers)
    assert (again.manifest_id, again.config_id) == (first.manifest_id, first.config_id)
    assert again.image_id == first.image_id is not None
    assert [type(event) for event in events] == [
        ImportStarted,
        *[LayerSkipped] * 3,
        ManifestStored,
        ImageTagged,
        ImportDone,
    ]


async def test_second_tag_costs_one_link(image: Image, tmp_path: Path) -> None:
    with init(tmp_path / "repo") as repo:
        await take(repo, image[0], tag="a")
        before = tree(tmp_path / "repo")
        await take(repo, image[0], tag="b")
    after = tree(tmp_path / "repo")
    assert after == before | {"streams/refs/oci/b": before["streams/refs/oci/a"]}


async def test_flushes_do_not_grow_with_the_layers(tmp_path: Path) -> None:
    writer = OciLayoutWriter(tmp_path / "image")
    writer.add_image([writer.add_layer(archive(100, seed=number)) for number in range(9)], platform=PLATFORM)
    with init(tmp_path / "repo") as repo:
        await take(repo, f"oci:{tmp_path}/image")
        assert state_of(repo).syncs.count == 1


async def test_half_present_image_is_completed(image: Image, tmp_path: Path) -> None:
    reference, layers = image
    with init(tmp_path / "repo") as repo:
        with blob(tmp_path / "image", layers[1].descriptor.digest).open("rb") as file:
            await import_layer(repo, layers[1].diff_id, anyio.wrap_file(file))
        result = await take(repo, reference, tag="t")
        assert [layer.present for layer in result.layers] == [False, True, False]
    with init(tmp_path / "other") as repo:
        await take(repo, reference, tag="t")
    assert tree(tmp_path / "repo") == tree(tmp_path / "other")


async def test_names_that_were_planted_are_found_by_a_verifying_pull(image: Image, tmp_path: Path) -> None:
    reference, layers = image
    with init(tmp_path / "repo") as repo:
        await take(repo, reference, tag="t")
        before = tree(tmp_path / "repo")
        assert (await take(repo, reference, tag="t", verify=True)).stats == ImportStats(layers_present=3)
        assert tree(tmp_path / "repo") == before
        names = [tmp_path / "repo" / "streams" / layer_stream(layer.diff_id) for layer in layers[:2]]
        target = names[1].readlink()
        names[0].unlink()
        names[0].symlink_to(target)
        planted = tree(tmp_path / "repo")
        with pytest.raises(DigestMismatchError, match=f"layer {layers[0].diff_id} in the repository"):
            await take(repo, reference, tag="u", verify=True)
        assert tree(tmp_path / "repo").keys() == planted.keys()
        assert (await take(repo, reference, tag="u")).layers[0].present


async def test_images_that_were_planted_are_replaced_by_a_verifying_pull(image: Image, tmp_path: Path) -> None:
    with init(tmp_path / "repo") as repo:
        first = await take(repo, image[0], tag="t")
        other = OciLayoutWriter(tmp_path / "other")
        other.add_image([other.add_layer(archive(7, seed=9))], platform=PLATFORM)
        wrong = await take(repo, f"oci:{tmp_path}/other", tag="o")
        assert wrong.image_id is not None
        found = await OciLayoutSource(tmp_path / "image").resolve(platform=PLATFORM)
        names = tuple((layer.diff_id, layer.stream_id) for layer in first.layers)
        documents = Documents(
            found.manifest.digest, found.manifest.raw, found.manifest.config.digest, found.config_raw, names
        )
        publish_image(state_of(repo), documents, {IMAGE_V1_REF: wrong.image_id}, "t")
        assert (await take(repo, image[0], tag="t")).image_id == wrong.image_id != first.image_id
        assert (await take(repo, image[0], tag="t", verify=True)).image_id == first.image_id
        assert (await take(repo, image[0], tag="t")).image_id == first.image_id


# -- kinds of images ---------------------------------------------------------------------------


async def test_image_may_have_no_layers(tmp_path: Path) -> None:
    OciLayoutWriter(tmp_path / "image").add_image([], platform=PLATFORM)
    with init(tmp_path / "repo") as repo:
        result = await take(repo, f"oci:{tmp_path}/image")
    assert (result.layers, result.stats) == ((), ImportStats())


async def test_same_layer_twice_is_read_once_and_listed_twice(tmp_path: Path) -> None:
    writer = OciLayoutWriter(tmp_path / "image")
    layer, other = writer.add_layer(archive(1000)), writer.add_layer(archive(2000))
    writer.add_image([layer, other, layer], platform=PLATFORM)
    events: list[ProgressEvent] = []
    with init(tmp_path / "repo") as repo:
        result = await take(repo, f"oci:{tmp_path}/image", progress=events.append)
    assert [found.diff_id for found in result.layers] == [layer.diff_id, other.diff_id, layer.diff_id]
    assert (result.stats.layers_imported, result.stats.objects_stored) == (2, 2)
    assert sum(isinstance(event, LayerDone) for event in events) == 2


@pytest.mark.parametrize("docker", [False, True], ids=["oci", "docker"])
@pytest.mark.parametrize("nested", [False, True], ids=["index", "index in index"])
async def test_image_in_an_index_is_found_by_platform(docker: bool, nested: bool, tmp_path: Path) -> None:
    writer = OciLayoutWriter(tmp_path / "image", docker=docker)
    layers = {name: writer.add_layer(archive(1000, seed=number)) for number, name in enumerate(("amd64", "s390x"))}
    entries = [writer.add_image([layer], platform=Platform("linux", name), tag=None) for name, layer in layers.items()]
    inner = writer.add_index(entries, tag=None if nested else "t")
    if nested:
        writer.add_index([inner], tag="t")
    with init(tmp_path / "repo") as repo:
        for name, layer in layers.items():
            result = await pull(repo, f"oci:{tmp_path}/image:t", platform=Platform("linux", name), tag=name)
            assert [found.diff_id for found in result.layers] == [layer.diff_id]


@pytest.mark.parametrize("size", [0, 1, 64, 65, 5000, 2 << 20, (2 << 20) + 1, (5 << 20) - 1])
async def test_layer_of_an_artifact_becomes_one_object(size: int, tmp_path: Path) -> None:
    data = content(size)
    writer = OciLayoutWriter(tmp_path / "image")
    writer.add_artifact([("application/x", data), ("text/plain", b"readme")], "application/x")
    with init(tmp_path / "repo") as repo:
        result = await pull(repo, f"oci:{tmp_path}/image", tag="a")
        digests = [sha256_content_digest(data), sha256_content_digest(b"readme")]
        assert [layer.diff_id for layer in result.layers] == digests
        for digest in digests:
            with repo.open_stream(f"oci-layer-{digest}", content_type=OCI_BLOB) as reader:
                assert len(list(reader.object_refs)) == 1
            merged = b"".join(repo.merge_splitstream(f"oci-layer-{digest}"))
            assert sha256_content_digest(merged) == digest
    assert result.stats == ImportStats(objects_stored=2, bytes_stored=size + 6, layers_imported=2, bytes_read=size + 6)


async def test_artifacts_may_have_platforms(tmp_path: Path) -> None:
    writer = OciLayoutWriter(tmp_path / "image")
    found = {name: writer.add_artifact([("application/x", name.encode())], "application/x", tag=None) for name in "ab"}
    writer.add_index(
        [replace(found["a"], platform=Platform("linux", "arm64")), replace(found["b"], platform=PLATFORM)], tag="t"
    )
    with init(tmp_path / "repo") as repo:
        result = await take(repo, f"oci:{tmp_path}/image:t", tag="x")
        assert result.manifest_digest == found["b"].digest
        assert b"".join(repo.merge_splitstream(f"oci-layer-{result.layers[0].diff_id}")) == b"b"


async def test_tar_that_an_artifact_brought_as_a_blob_is_no_layer(tmp_path: Path) -> None:
    """The same bytes under the same name, but undivided: the image would have no tree."""
    packed = archive(1000, 70)
    writer = OciLayoutWriter(tmp_path / "artifact")
    writer.add_artifact([("application/x", packed)], "application/x")
    writer = OciLayoutWriter(tmp_path / "image")
    layer = writer.add_layer(packed)
    writer.add_image([layer], platform=PLATFORM)
    with init(tmp_path / "repo") as repo:
        await pull(repo, f"oci:{tmp_path}/artifact", tag="a")
        result = await take(repo, f"oci:{tmp_path}/image", tag="i")
        assert not result.layers[0].present
        with repo.open_stream(f"oci-layer-{layer.diff_id}", content_type=OCI_LAYER) as reader:
            assert len(list(reader.object_refs)) == 2
        again = await pull(repo, f"oci:{tmp_path}/artifact", tag="a")
        assert again.layers[0].present


async def test_manifest_is_found_by_digest(image: Image, tmp_path: Path) -> None:
    found = await OciLayoutSource(tmp_path / "image").resolve(platform=PLATFORM)
    with init(tmp_path / "repo") as repo:
        result = await pull(repo, f"oci:{tmp_path}/image@{found.manifest.digest}", tag="t")
    assert result.manifest_digest == found.manifest.digest


async def test_reference_is_the_tag_unless_one_is_given(
    image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with init(tmp_path / "repo") as repo:
        result = await take(repo, "oci:image:latest")
        assert result.tag == "oci:image:latest"
        assert repo.named_streams("oci") == [("oci:image:latest", f"oci-manifest-{result.manifest_digest}")]


# -- events ------------------------------------------------------------------------------------


async def test_events_tell_all_and_large_layers_come_first(image: Image, tmp_path: Path) -> None:
    reference, layers = image
    events: list[ProgressEvent] = []
    with init(tmp_path / "repo") as repo:
        repo.write_semaphore().total_tokens = 1  # one layer at a time
        result = await take(repo, reference, tag="t", progress=events.append)
    told = finals(events)
    manifest = result.manifest_digest
    assert told[0] == ImportStarted(reference, manifest, 3, sum(layer.descriptor.size for layer in layers))
    assert result.image_id is not None
    size = (tmp_path / "repo/objects" / result.image_id.path).stat().st_size
    assert told[-4] == ImageMade(1, result.image_id.hex(), size)
    assert told[-3:] == [ManifestStored(manifest), ImageTagged("t", manifest), ImportDone(manifest, result.stats)]
    started = [event for event in told if isinstance(event, LayerStarted)]
    by_size = sorted(layers, key=lambda layer: -layer.descriptor.size)
    assert started == [LayerStarted(layer.diff_id, layer.descriptor.digest, layer.descriptor.size) for layer in by_size]
    done = {event.diff_id: event for event in told if isinstance(event, LayerDone)}
    assert done == {layer.diff_id: LayerDone(layer.diff_id, layer.stats) for layer in result.layers}
    assert len(told) == 1 + 3 + 3 + 1 + 3
    for layer in layers:
        of_layer = [event for event in events if getattr(event, "diff_id", None) == layer.diff_id]
        assert isinstance(of_layer[0], LayerStarted)
        assert isinstance(of_layer[-1], LayerDone)


class StopError(Exception):
    pass


BEFORE = [ImportStarted, LayerStarted, LayerDone, ImageMade]
AFTER = [ManifestStored, ImageTagged, ImportDone]


@pytest.mark.parametrize("at", BEFORE + AFTER)
async def test_error_of_the_callback_ends_the_pull(at: type[ProgressEvent], image: Image, tmp_path: Path) -> None:
    def heard(event: ProgressEvent) -> None:
        if isinstance(event, at):
            raise StopError

    with init(tmp_path / "repo") as repo:
        with pytest.raises(StopError):
            await take(repo, image[0], tag="t", progress=heard)
        assert bool(links(tmp_path / "repo")) == (at in AFTER)
        result = await take(repo, image[0], tag="t")
        # Finished layers that have no name yet are leased.
        assert [layer.present for layer in result.layers] == [at in [ImageMade, *AFTER]] * 3


async def test_documents_and_layers_that_were_damaged_are_written_again(image: Image, tmp_path: Path) -> None:
    with init(tmp_path / "repo") as repo:
        first = await take(repo, image[0], tag="t")
        for stream in [first.manifest_id, first.config_id, *(layer.stream_id for layer in first.layers)]:
            path = tmp_path / "repo/objects" / stream.path
            path.write_bytes(bytes(path.stat().st_size))  # the size alone would be believed
        again = await take(repo, image[0], tag="t")
        assert [layer.present for layer in again.layers] == [False] * 3
        assert again.stats.objects_present == first.stats.objects_stored
        opened = open_image(repo, "t")
        assert opened.layers == {layer.diff_id: layer.stream_id for layer in first.layers}
        for layer in first.layers:
            assert layer_info(repo, layer.diff_id).entries > 0


# -- several at once ---------------------------------------------------------------------------


@pytest.mark.parametrize("handles", [1, 2])
async def test_two_pulls_at_once_do_the_work_once(handles: int, image: Image, tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    results: dict[str, PullResult] = {}

    async def run(repo: Repository, tag: str) -> None:
        results[tag] = await take(repo, image[0], tag=tag, progress=events.append)

    with init(tmp_path / "repo") as repo, Repository.open_path(tmp_path / "repo") as second:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, repo, "a")
            tasks.start_soon(run, second if handles == 2 else repo, "b")
        ids = sorted(layer.diff_id for layer in image[1])
        for kind in (LayerStarted, LayerDone, LayerSkipped):
            assert sorted(event.diff_id for event in events if isinstance(event, kind)) == ids
        assert len([event for event in events if isinstance(event, ImageMade)]) == 1
        assert [name for name, _ in repo.named_streams("oci")] == ["a", "b"]
        assert results["a"].image_id == results["b"].image_id
        assert sorted(result.stats.layers_present for result in results.values()) == [0, 3]
        assert repo.leases() == []


async def test_pull_goes_on_where_one_that_it_waited_for_was_given_up(image: Image, tmp_path: Path) -> None:
    works, scope = anyio.Event(), anyio.CancelScope()

    def heard(event: ProgressEvent) -> None:
        if isinstance(event, LayerStarted):
            works.set()
        elif isinstance(event, ImageMade):
            scope.cancel()

    async def given_up() -> None:
        with scope:
            await take(repo, image[0], tag="a", progress=heard)

    with init(tmp_path / "repo") as repo:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(given_up)
            await works.wait()
            await take(repo, image[0], tag="b")
        assert [name for name, _ in repo.named_streams("oci")] == ["b"]
        assert repo.leases() == []


async def test_layer_stored_and_not_yet_published_is_not_read_again(tmp_path: Path) -> None:
    """The first pull stands still after its first layer; a second one wants that layer."""
    writer = OciLayoutWriter(tmp_path / "image")
    shared = writer.add_layer(archive(200_000), "none")
    writer.add_image([shared, writer.add_layer(archive(100, seed=1))], tag="two", platform=PLATFORM)
    writer.add_image([shared], tag="one", platform=PLATFORM)
    events: list[ProgressEvent] = []
    reached = anyio.Event()

    def first(event: ProgressEvent) -> None:
        if isinstance(event, LayerDone) and event.diff_id == shared.diff_id:
            blob(tmp_path / "image", shared.descriptor.digest).write_bytes(bytes(shared.descriptor.size))
            reached.set()

    async def wait_and_pull() -> None:
        await reached.wait()
        await take(repo, f"oci:{tmp_path}/image:one", tag="one", progress=events.append)

    with init(tmp_path / "repo") as repo:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait_and_pull)
            await take(repo, f"oci:{tmp_path}/image:two", tag="two", progress=first)
    assert LayerSkipped(shared.diff_id) in events


PROCESS = """
import sys, anyio
from composefs_async.oci.platforms import Platform
from composefs_async.oci.importing.pull import pull
from composefs_async.repository import Repository
async def main():
    with Repository.open_path(sys.argv[1]) as repo:
        print("ready", flush=True)
        sys.stdin.readline()
        await pull(repo, sys.argv[2], tag="t", platform=Platform("linux", "amd64"))
anyio.run(main, backend=sys.argv[3].replace("uvloop", "asyncio"))
"""


async def test_two_processes_pull_the_same_image(image: Image, tmp_path: Path, anyio_backend_name: str) -> None:
    init(tmp_path / "repo").close()

    def run() -> None:
        command = [sys.executable, "-c", PROCESS, str(tmp_path / "repo"), image[0], anyio_backend_name]
        processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.communicate("go\n")
        assert [process.returncode for process in processes] == [0, 0, 0]

    await anyio.to_thread.run_sync(run)
    with init(tmp_path / "other") as repo:
        await take(repo, image[0], tag="t")
    assert tree(tmp_path / "repo") == tree(tmp_path / "other")


async def test_document_limit_can_be_set(image: Image, tmp_path: Path) -> None:
    with init(tmp_path / "repo") as repo:
        with pytest.raises(Exception, match="limit of 100"):
            await take(repo, image[0], limits=Limits(document_size=100))
        assert links(tmp_path / "repo") == []
    assert os.listdir(tmp_path / "repo") == ["meta.json"]
