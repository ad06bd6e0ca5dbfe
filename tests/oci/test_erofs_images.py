"""EROFS images of OCI images: which are made, where they are named, and when nothing is done."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from composefs_async._repo import publish
from composefs_async._repo.metadata import ErofsFormats
from composefs_async.digest import Algorithm, ObjectId
from composefs_async.erofs.reader.tree import image_to_tree
from composefs_async.erofs.writer import build_image
from composefs_async.errors import OciError, StreamNotFoundError
from composefs_async.naming import (
    BOOT_IMAGE_REF,
    BOOT_IMAGE_V1_REF,
    IMAGE_REF,
    IMAGE_V1_REF,
    KEEP_USER_XATTRS,
    config_stream,
    manifest_stream,
)
from composefs_async.oci.catalogue import OciImage, open_image
from composefs_async.oci.erofs_images import (
    Documents,
    ensure_images,
    ensure_images_async,
    image_tree,
    image_tree_async,
    publish_image,
)
from composefs_async.oci.filesystem import XattrFilter
from composefs_async.oci.importing.pull import pull
from composefs_async.oci.importing.pull_result import PullResult
from composefs_async.oci.layout_writer import OciLayoutWriter
from composefs_async.oci.platforms import Platform
from composefs_async.progress import ImageMade, ProgressEvent
from composefs_async.repository import Repository, state_of
from composefs_async.tree.dumpwriter import write_dump
from composefs_async.tree.inodes import Directory, InlineFile

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leaks")]

PLATFORM = Platform("linux", "amd64")


def archive(*members: tuple[str, bytes | None], **pax: str) -> bytes:
    """Files with their content, directories with None."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as made:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.mtime, info.mode, info.pax_headers = 1_600_000_000, 0o755, pax
            info.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            info.size = len(content or b"")
            made.addfile(info, io.BytesIO(content or b""))
    return out.getvalue()


LOWER = archive(
    ("usr", None), ("usr/large", b"l" * 1000), ("usr/small", b"s"), ("usr/old", b"o"), ("run", None), ("run/x", b"x")
)
UPPER = archive(("usr", None), ("usr/.wh.old", b""), ("usr/new", b"n" * 100))
EXPECTED = [b"/", b"/run", b"/usr", b"/usr/large", b"/usr/new", b"/usr/small"]


class Place:
    """An image directory with one image, and repositories to pull it into."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer = OciLayoutWriter(path / "image")

    def add(self, *layers: bytes, tag: str = "latest") -> str:
        self.writer.add_image([self.writer.add_layer(layer) for layer in layers], tag=tag, platform=PLATFORM)
        return f"oci:{self.path}/image:{tag}"

    def repo(
        self, formats: int | ErofsFormats = 1, algorithm: Algorithm = Algorithm.SHA256, name: str = "repo"
    ) -> Repository:
        return Repository.init(self.path / name, algorithm=algorithm, erofs_version=formats, insecure=True)

    def snapshot(self, name: str = "repo") -> dict[str, bytes | str]:
        found: dict[str, bytes | str] = {}
        for entry in sorted((self.path / name).rglob("*")):
            if entry.is_symlink():
                found[str(entry.relative_to(self.path / name))] = str(entry.readlink())
            elif entry.is_file():
                found[str(entry.relative_to(self.path / name))] = entry.read_bytes()
        return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def reference(place: Place) -> str:
    """An image of two layers."""
    return place.add(LOWER, UPPER)


async def take(repo: Repository, reference: str, **options: Any) -> PullResult:
    return await pull(repo, reference, tag="t", platform=PLATFORM, **options)


def paths(root: Directory) -> list[bytes]:
    return [line.split(b" ")[0] for line in write_dump(root)]


# -- which are made ----------------------------------------------------------------------------

FORMATS = {
    "V0": (ErofsFormats(0), {IMAGE_V1_REF: 0}),
    "V1": (ErofsFormats(1), {IMAGE_V1_REF: 1}),
    "V2": (ErofsFormats(2), {IMAGE_REF: 2}),
    "V1 and V2": (ErofsFormats(1, (2,)), {IMAGE_V1_REF: 1, IMAGE_REF: 2}),
    "V2 and V1": (ErofsFormats(2, (1,)), {IMAGE_REF: 2, IMAGE_V1_REF: 1}),
    "V0 and V1, which have one name": (ErofsFormats(0, (1,)), {IMAGE_V1_REF: 0}),
    "V2, V0 and V1": (ErofsFormats(2, (0, 1)), {IMAGE_REF: 2, IMAGE_V1_REF: 0}),
}


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("name", FORMATS)
async def test_image_is_made_in_each_layout_of_the_repository(name: str, algorithm: Algorithm, place: Place) -> None:
    formats, expected = FORMATS[name]
    events: list[ProgressEvent] = []
    with place.repo(formats, algorithm) as repo:
        result = await take(repo, place.add(LOWER, UPPER), progress=events.append)
        image = open_image(repo, "t")
        tree = image_tree(repo, image)
        made = {reference: build_image(tree, algorithm, version) for reference, version in expected.items()}
        assert paths(tree) == EXPECTED
        assert {reference: repo.read_object(found) for reference, found in image.images.items()} == made
        assert [event for event in events if isinstance(event, ImageMade)] == [
            ImageMade(version, image.images[reference].hex(), len(made[reference]))
            for reference, version in expected.items()
        ]
        assert result.image_id == image.image(formats.default) == next(iter(image.images[key] for key in expected))
        for found in image.images.values():
            assert repo.has_image(found.hex()) == found
            assert len(repo.objects_for_image(found.hex())) == 2
        with repo.open_stream(manifest_stream(result.manifest_digest)) as reader:
            assert not set(reader.named_refs) & {IMAGE_REF, IMAGE_V1_REF}


async def test_layer_twice_counts_twice(place: Place) -> None:
    first, second = archive(("f", b"1")), archive(("f", b"2"))
    with place.repo() as repo:
        await take(repo, place.add(first, second, first))
        file = image_tree(repo, open_image(repo, "t")).children[b"f"]
        assert isinstance(file, InlineFile)
        assert file.content == b"1"


@pytest.mark.parametrize("layers", [[], [archive(("f", b"1"))]], ids=["no layers", "a file"])
async def test_image_without_usr_has_an_image(layers: list[bytes], place: Place) -> None:
    with place.repo() as repo:
        result = await take(repo, place.add(*layers))
        assert result.image_id is not None
        tree = image_to_tree(repo.read_object(result.image_id))
        assert list(tree.children) == [b"f"] * len(layers)
        assert (tree.mode, tree.uid, tree.gid, tree.mtime_ns) == (0o040755, 0, 0, 0)


async def test_artifact_has_no_image(place: Place) -> None:
    place.writer.add_artifact([("text/plain", b"x")], "application/x")
    with place.repo() as repo:
        result = await pull(repo, f"oci:{place.path}/image", tag="t")
        assert result.image_id is None
        image = ensure_images(repo, "t")
        assert image.images == {}
        with pytest.raises(OciError, match="artifact"):
            image_tree(repo, image)
    assert "images" not in {name.partition("/")[0] for name in place.snapshot()}


async def test_layers_that_contradict_themselves_are_not_published(place: Place) -> None:
    reference = place.add(archive(("f", b"1")), archive(("f", b"2"), ("f/g", b"1")))
    with place.repo() as repo:
        with pytest.raises(OciError, match=r"layer sha256:\w+, entry 'f/g'"):
            await take(repo, reference)
        assert [name for name in place.snapshot() if not name.startswith("objects/")] == ["meta.json"]
        result = await take(repo, reference, make_images=False)
        assert result.image_id is None
        assert open_image(repo, "t").images == {}


@pytest.mark.parametrize(
    ("xattrs", "expected"),
    [
        (None, [b"security.capability", b"security.selinux", b"user.x"]),
        (XattrFilter.KEEP_USER_XATTRS, [b"security.capability", b"user.x"]),
        (XattrFilter.ALLOWLIST_ONLY, [b"security.capability"]),
    ],
)
async def test_tree_can_be_had_with_other_attributes(
    xattrs: XattrFilter | None, expected: list[bytes], place: Place
) -> None:
    pax = {f"SCHILY.xattr.{name}": "v" for name in ("user.x", "security.capability", "security.selinux")}
    with place.repo() as repo:
        result = await take(repo, place.add(archive(("usr", None), **pax)))
        image = open_image(repo, "t")
        for tree in (image_tree(repo, image, xattrs), await image_tree_async(repo, image, xattrs)):
            assert [name for name, _ in tree.children[b"usr"].xattrs] == expected
        assert result.image_id is not None
        made = image_to_tree(repo.read_object(result.image_id))
        assert made.children[b"usr"].xattrs == ((b"security.capability", b"v"),)


# -- publishing --------------------------------------------------------------------------------


async def test_all_is_published_at_once_and_images_first(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[list[str]] = []
    original = publish.publish

    def spy(state: Any, links: list[publish.Link]) -> None:
        published.append([link.path.split(":")[0] for link in links])
        original(state, links)

    monkeypatch.setattr(publish, "publish", spy)
    with place.repo(ErofsFormats(1, (2,))) as repo:
        result = await take(repo, place.add(LOWER, UPPER))
        second = open_image(repo, "t").images[IMAGE_REF]
        assert state_of(repo).syncs.count == 1
    assert published == [
        [
            f"images/{result.image_id}",
            f"images/{second}",
            *["streams/oci-layer-sha256"] * 2,
            "streams/oci-config-sha256",
            "streams/oci-manifest-sha256",
            "streams/refs/oci/t",
        ]
    ]


async def test_second_pull_builds_and_changes_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = place.add(LOWER, UPPER)
    with place.repo(ErofsFormats(1, (2,))) as repo:
        first = await take(repo, reference)
        before = place.snapshot()
        monkeypatch.setattr("composefs_async.oci.erofs_images.image_pieces", None)
        again = await take(repo, reference)
        image = ensure_images(repo, "t")
    assert again.image_id == first.image_id == image.image(1)
    assert place.snapshot() == before


Repair = Callable[[Repository], OciImage]


@pytest.mark.parametrize("by_pull", [True, False], ids=["pull", "ensure_images"])
@pytest.mark.parametrize("lost", ["all", "object", "link", "config"])
async def test_what_is_missing_is_made(lost: str, by_pull: bool, place: Place) -> None:
    reference = place.add(LOWER, UPPER)
    with place.repo(name="whole") as repo:
        await take(repo, reference)
    with place.repo() as repo:
        result = await take(repo, reference, make_images=lost != "all")
        if result.image_id is None:
            assert (lost, open_image(repo, "t").images) == ("all", {})
        elif lost == "object":
            (place.path / "repo/objects" / result.image_id.path).unlink()
        elif lost == "link":
            (place.path / f"repo/images/{result.image_id}").unlink()
        elif lost == "config":
            (place.path / f"repo/streams/{config_stream(result.config_digest)}").unlink()
        if by_pull:
            await take(repo, reference)
        else:
            ensure_images(repo, "t")
        image = open_image(repo, "t")
        assert image_to_tree(repo.read_object(image.images[IMAGE_V1_REF])).children.keys() == {b"usr", b"run"}
    found, whole = place.snapshot(), place.snapshot("whole")
    assert {name: found[name] for name in whole} == whole
    # The streams of a config and a manifest without an image were stored, and are garbage now.
    assert len(found.keys() - whole.keys()) == (2 if lost == "all" else 0)


async def test_images_that_others_have_linked_stay(place: Place) -> None:
    reference = place.add(LOWER)
    with place.repo(1) as repo:
        await take(repo, reference, make_images=False)
        image, state = open_image(repo, "t"), state_of(repo)
        assert image.config is not None
        documents = Documents(
            image.manifest.digest,
            image.manifest.raw,
            image.config.digest,
            image.config_raw,
            tuple(image.layers.items()),
        )
        theirs = {
            name: repo.write_image(name.encode())
            for name in (BOOT_IMAGE_V1_REF, BOOT_IMAGE_REF + KEEP_USER_XATTRS, IMAGE_REF, BOOT_IMAGE_REF)
        }
        publish_image(state, documents, theirs)
        assert open_image(repo, "t").images == theirs
        result = await take(repo, reference)
        assert result.image_id is not None
        assert open_image(repo, "t").images == theirs | {IMAGE_V1_REF: result.image_id}
        with repo.open_stream("", result.config_id) as reader:
            assert list(reader.stream_refs) == [
                *image.layers.values(),
                theirs[IMAGE_REF],
                result.image_id,
                theirs[BOOT_IMAGE_REF],
                theirs[BOOT_IMAGE_V1_REF],
                theirs[BOOT_IMAGE_REF + KEEP_USER_XATTRS],
            ]


async def test_reference_to_an_image_that_is_gone_stays_if_it_is_not_ours(place: Place) -> None:
    reference = place.add(LOWER)
    lost = ObjectId(bytes(32))
    with place.repo(1) as repo:
        await take(repo, reference)
        image = open_image(repo, "t")
        assert image.config is not None
        layers = tuple(image.layers.items())
        documents = Documents(image.manifest.digest, image.manifest.raw, image.config.digest, image.config_raw, layers)
        publish_image(state_of(repo), documents, {BOOT_IMAGE_REF: lost, **image.images})
        assert open_image(repo, "t").images == image.images | {BOOT_IMAGE_REF: lost}
        await take(repo, reference)
        assert open_image(repo, "t").images == image.images | {BOOT_IMAGE_REF: lost}


@pytest.mark.usefixtures("no_blocking")
async def test_async_form_makes_what_is_missing(reference: str, tmp_path: Path) -> None:
    repo = await Repository.init_async(tmp_path / "repo", algorithm=Algorithm.SHA256, insecure=True)
    async with repo:
        await take(repo, reference, make_images=False)
        image = await ensure_images_async(repo, "t")
        result = await take(repo, reference)
        assert image.images == {IMAGE_V1_REF: result.image_id}
        with pytest.raises(StreamNotFoundError):
            await ensure_images_async(repo, "no such tag")
