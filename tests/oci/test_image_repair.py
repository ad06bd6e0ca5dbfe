"""Repair that knows OCI: layers split again, documents and images made again, and layers that lost their end."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from composefs_async._sys import files
from composefs_async._zstd import zstd
from composefs_async.digest import Algorithm, ObjectId
from composefs_async.errors import AlgorithmMismatchError, ImageNotFoundError, OciError
from composefs_async.naming import layer_stream
from composefs_async.oci import catalogue, pull, stored_layers
from composefs_async.oci.image_repair import repair
from composefs_async.repository import Repository
from composefs_async.results import RepairResult

from ..maintenance.damaging import CASES, DAMAGES, LAYOUTS, PLATFORM, content, copy, cut, flip, make, objects, remove

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leaks")]

ALL = [f"oci:{LAYOUTS}/{case}" for case in CASES]


@pytest.fixture(scope="module", params=[1, 2], ids=["layout 1", "layout 2"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    return make(tmp_path_factory.mktemp("whole") / "repo", Algorithm.SHA256, request.param)


@pytest.fixture
def damaged(whole: Path, tmp_path: Path) -> Path:
    return copy(whole, tmp_path / "damaged")


def golden(flavour: str, path: Path) -> Path:
    """A repository that composefs-rs made in spring 2026."""
    packed = (LAYOUTS.parent / "repository" / f"{flavour}.tar.zst").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(zstd.decompress(packed))) as archive:
        archive.extractall(path / "golden", filter="fully_trusted")
    (meta,) = (path / "golden").rglob("meta.json")
    return meta.parent


async def mend(path: Path, *sources: Any, **options: Any) -> RepairResult:
    async with await Repository.open_path_async(path) as repo:
        return await repair(repo, sources, **options)


def actions(result: RepairResult) -> list[tuple[str, str]]:
    return sorted((each.path, each.action) for each in result.actions)


def names_of(path: Path, *beginnings: str) -> list[str]:
    """Names of the first level."""
    found = [name for name in content(path) if "/refs/" not in name and not name.startswith("objects/")]
    return sorted(name for name in found if name.startswith(beginnings))


def object_of(path: Path, name: str) -> str:
    return f"objects/{ObjectId.from_path(os.readlink(path / name)).path}"


# -- from an image directory -------------------------------------------------------------------


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_everything_comes_back_from_image_directories(
    whole: Path, damaged: Path, damage: Callable[[Path], None]
) -> None:
    for name in objects(damaged):
        damage(damaged / name)
    result = await mend(damaged, *ALL)
    assert (result.ok, result.unrepaired, result.problems) == (True, (), ())
    assert content(damaged) == content(whole)
    assert result.recovered_refs == result.affected_refs != ()


@pytest.mark.parametrize("damage", [remove, flip, cut])
async def test_each_object_comes_back_alone(whole: Path, damaged: Path, damage: Callable[[Path], None]) -> None:
    for name in objects(whole)[::6]:
        copy(whole, damaged)
        damage(damaged / name)
        result = await mend(damaged, *ALL)
        assert (name, result.ok, result.problems) == (name, True, ())
        assert content(damaged) == content(whole)
        assert {each.path for each in result.actions if each.path.startswith("objects/")} == {name}


async def test_only_the_layer_that_is_needed_is_read(whole: Path, damaged: Path, tmp_path: Path) -> None:
    """The blobs of the others are not even there."""
    layout = Path(shutil.copytree(LAYOUTS / "basic", tmp_path / "layout"))
    with Repository.open_path(whole) as repo:
        image = catalogue.open_image(repo, "basic")
        first, second = image.layers
        used = [set(_object_refs(repo, layer)) for layer in (first, second)]
    victim = min(used[0] - used[1])
    descriptor = image.manifest.layers[list(image.layers).index(second)]
    (layout / "blobs" / descriptor.digest.replace(":", "/")).unlink()
    remove(damaged / "objects" / victim.path)
    result = await mend(damaged, f"oci:{layout}")
    assert (result.ok, actions(result)) == (True, [(f"objects/{victim.path}", "restored")])
    assert content(damaged) == content(whole)


def _object_refs(repo: Repository, layer: str) -> tuple[ObjectId, ...]:
    with repo.open_stream(layer_stream(layer)) as reader:
        return tuple(reader.object_refs)


async def test_a_directory_that_is_damaged_itself_does_no_harm(whole: Path, damaged: Path, tmp_path: Path) -> None:
    layout = Path(shutil.copytree(LAYOUTS / "basic", tmp_path / "layout"))
    with Repository.open_path(whole) as repo:
        image = catalogue.open_image(repo, "basic")
        victims = [min(_object_refs(repo, layer)) for layer in image.layers]
    for layer in image.manifest.layers:
        blob = layout / "blobs" / layer.digest.replace(":", "/")
        found = bytearray(blob.read_bytes())
        found[len(found) // 2] ^= 1
        blob.write_bytes(found)
    for victim in victims:
        flip(damaged / "objects" / victim.path)
    before = content(damaged)
    result = await mend(damaged, f"oci:{layout}")
    assert (result.ok, result.actions, result.recovered_refs) == (False, (), ())
    assert content(damaged) == before
    assert len(result.problems) == len(set(image.layers))
    assert all(problem.startswith(f"oci:{layout}: layer sha256:") for problem in result.problems)
    result = await mend(damaged, f"oci:{layout}", ALL[0])
    assert result.ok
    assert content(damaged) == content(whole)


async def test_a_layer_without_an_image_comes_from_the_image_that_is_named(tmp_path: Path) -> None:
    path = tmp_path / "repo"
    with Repository.init(path, algorithm=Algorithm.SHA256, insecure=True) as repo:
        await pull(repo, ALL[0], tag="basic", platform=PLATFORM)
        layers = list(catalogue.open_image(repo, "basic").layers)
    for name in names_of(path, "streams/oci-config", "streams/oci-manifest", "images/"):
        (path / name).unlink()
    (path / "streams/refs/oci/basic").unlink()
    for layer in layers:
        flip(path / object_of(path, f"streams/{layer_stream(layer)}"))
    assert not (await mend(path, ALL[0])).ok
    result = await mend(path, f"{ALL[0]}:latest")
    assert result.ok, result.unrepaired
    with Repository.open_path(path) as repo:
        for layer in layers:
            assert b"".join(stored_layers.layer_content(repo, layer))


@pytest.mark.parametrize("source", ["oci:nothing", f"oci:{LAYOUTS}/basic:nothing", f"oci:{LAYOUTS.parent}"])
async def test_a_source_that_is_none_is_an_error_before_anything_is_done(damaged: Path, source: str) -> None:
    flip(damaged / objects(damaged)[0])
    before = content(damaged)
    with pytest.raises((OciError, ImageNotFoundError)):
        await mend(damaged, *ALL, source)
    assert content(damaged) == before


async def test_a_repository_of_the_other_algorithm_is_refused(damaged: Path, tmp_path: Path) -> None:
    Repository.init(tmp_path / "other", algorithm=Algorithm.SHA512, insecure=True).close()
    with pytest.raises(AlgorithmMismatchError, match="from which to repair"):
        await mend(damaged, tmp_path / "other")


async def test_the_place_for_layers_vanishes_and_so_does_one_that_was_left(whole: Path, damaged: Path) -> None:
    private = damaged / ".composefs-async"
    left = private / "scratch-0123456789ab"
    (left / "objects").mkdir(parents=True)
    flip(damaged / object_of(damaged, names_of(damaged, "streams/oci-layer")[0]))
    assert (await mend(damaged, *ALL)).ok
    assert sorted(each.name for each in private.iterdir()) == ["quarantine"]
    assert content(damaged) == content(whole)


# -- documents and images ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["streams/oci-config", "streams/oci-manifest", "streams/oci-layer", "images/"])
@pytest.mark.parametrize("damage", [remove, flip])
async def test_streams_and_images_are_made_again_the_same(
    whole: Path, damaged: Path, damage: Callable[[Path], None], kind: str
) -> None:
    for name in names_of(damaged, kind):
        damage(damaged / object_of(damaged, name))
    result = await mend(damaged, *ALL)
    assert result.ok, result.unrepaired
    assert content(damaged) == content(whole)


@pytest.mark.parametrize("with_name", [False, True], ids=["name gone", "name there"])
@pytest.mark.parametrize("damage", [remove, flip])
async def test_an_image_is_built_from_its_layers_without_any_source(
    whole: Path, damaged: Path, damage: Callable[[Path], None], with_name: bool
) -> None:
    for name in names_of(damaged, "images/"):
        damage(damaged / object_of(damaged, name))
        if not with_name:
            (damaged / name).unlink()
    result = await mend(damaged)
    assert result.ok, result.unrepaired
    assert content(damaged) == content(whole)
    assert {each.source for each in result.actions if each.path.startswith("objects/")} == {"its layers"}


async def test_an_image_that_comes_out_otherwise_is_not_taken(damaged: Path) -> None:
    """The config refers to something that its layers do not make."""
    with Repository.open_path(damaged) as repo:
        image = catalogue.open_image(repo, "one")
        other = repo.ensure_object(b"no image").id
        writer = _config_writer(repo, image, other)
        stream_id = repo.write_stream(writer, f"oci-config-{image.manifest.config.digest}")
        writer = _manifest_writer(repo, image, stream_id)
        repo.write_stream(writer, f"oci-manifest-{image.manifest.digest}")
    remove(damaged / "objects" / other.path)
    before = content(damaged)
    result = await mend(damaged)
    assert not result.ok
    assert content(damaged) == before
    assert result.problems == (f"image {other.hex()}: built from its layers it has another id",)


def _config_writer(repo: Repository, image: catalogue.OciImage, image_id: ObjectId) -> Any:
    from composefs_async.naming import image_ref
    from composefs_async.splitstream import OCI_CONFIG, SplitstreamWriter

    writer = SplitstreamWriter(repo.algorithm, OCI_CONFIG)
    for name, layer in image.layers.items():
        writer.add_named_stream_ref(name, layer)
    writer.add_named_stream_ref(image_ref(repo.metadata.formats.default), image_id)
    writer.write_reference(repo.ensure_object(image.config_raw).id)
    writer.add_external_size(len(image.config_raw))
    return writer


def _manifest_writer(repo: Repository, image: catalogue.OciImage, config_id: ObjectId) -> Any:
    from composefs_async.splitstream import OCI_MANIFEST, SplitstreamWriter

    writer = SplitstreamWriter(repo.algorithm, OCI_MANIFEST)
    writer.add_named_stream_ref(f"config:{image.manifest.config.digest}", config_id)
    for name, layer in image.layers.items():
        writer.add_named_stream_ref(name, layer)
    writer.write_reference(repo.ensure_object(image.manifest.raw).id)
    writer.add_external_size(len(image.manifest.raw))
    return writer


async def test_names_and_objects_may_be_gone_together(whole: Path, damaged: Path) -> None:
    """Only the tags are left."""
    shutil.rmtree(damaged / "objects")
    for name in names_of(damaged, "streams/", "images/"):
        (damaged / name).unlink()
    (damaged / "images/refs/an/image").unlink()
    result = await mend(damaged, *ALL)
    assert result.ok, result.unrepaired
    assert content(damaged).keys() == content(whole).keys() - {"images/refs/an/image"}


async def test_what_another_repository_has_under_other_ids_is_found_by_name(
    whole: Path, damaged: Path, tmp_path: Path
) -> None:
    """Each program writes streams a little differently, and only what they say is the same."""
    source = copy(whole, tmp_path / "source")
    with Repository.open_path(source) as repo:
        image = catalogue.open_image(repo, "basic")
        image_id = image.image(repo.metadata.formats.default)
        assert image_id is not None
        writer = _config_writer(repo, image, image_id)
        writer.add_named_stream_ref("another", image_id)
        config_id = repo.write_stream(writer, f"oci-config-{image.manifest.config.digest}")
        repo.write_stream(_manifest_writer(repo, image, config_id), f"oci-manifest-{image.manifest.digest}")
    os.unlink(source / "objects" / image.config_id.path)
    os.unlink(source / "objects" / image.manifest_id.path)
    for victim in (image.config_id, image.manifest_id):
        flip(damaged / "objects" / victim.path)
    result = await mend(damaged, source)
    assert result.ok, result.unrepaired
    assert content(damaged) == content(whole)


# -- layers that lost their end ----------------------------------------------------------------


def layers_of(repo: Repository) -> dict[str, str]:
    """The digest of the content of each layer, by what it should be."""
    found = {}
    for name in names_of(Path(repo.path), "streams/oci-layer-sha256:"):
        hasher = hashlib.sha256()
        for piece in repo.merge_splitstream(Path(name).name):
            hasher.update(piece)
        found[name.removeprefix("streams/oci-layer-")] = f"sha256:{hasher.hexdigest()}"
    return found


@pytest.mark.parametrize("flavour", ["g3-sha256", "g3-sha512"])
async def test_layers_that_lost_the_end_of_their_tar_are_made_whole(flavour: str, tmp_path: Path) -> None:
    path = golden(flavour, tmp_path)
    names = [each.name for each in LAYOUTS.iterdir() if (each / "oci-layout").is_file()]
    with Repository.open_path(path) as repo:
        before = {tag.name: tag for tag in catalogue.images(repo)}
        images = {name: catalogue.open_image(repo, name).images for name in before}
        cut_off = {expected for expected, found in layers_of(repo).items() if found != expected}
        assert len(cut_off) > 5
        result = await repair(repo, [f"oci:{LAYOUTS}/{name}" for name in sorted(names)])
        # Its image has a name that no kernel reads, and is what it is.
        assert {each.path.partition("/")[0] for each in result.unrepaired} <= {"images"}
        assert set(result.affected_refs) - set(result.recovered_refs) <= {"streams/refs/oci/pax:latest"}
        assert {tag.name: tag for tag in catalogue.images(repo)} == before
        assert {name: catalogue.open_image(repo, name).images for name in before} == images
        layers = layers_of(repo)
        assert all(found == expected for expected, found in layers.items())
        for name in before:
            image = catalogue.open_image(repo, name)
            for layer in image.config.diff_ids if image.config else ():
                assert image.layers[layer] == repo.has_stream(layer_stream(layer))
        rewritten = {each.path for each in result.actions if each.action == "rewritten"}
        assert {name for name in rewritten if "oci-layer" in name} == {f"streams/oci-layer-{each}" for each in cut_off}
        again = await repair(repo, [])
        assert again.actions == ()


async def test_an_object_that_is_too_short_is_no_reason_to_write_a_stream_again(tmp_path: Path) -> None:
    """Its layer is, too; and composefs-rs has packed it in another way than this program would."""
    path = golden("g4-sha256-v1", tmp_path)
    with Repository.open_path(path) as repo:
        image = catalogue.open_image(repo, "basic:latest")
        victim = path / "objects" / max(_object_refs(repo, layer)[-1] for layer in image.layers).path
    good = content(path)
    cut(victim)
    result = await mend(path, f"oci:{LAYOUTS}/basic")
    assert actions(result) == [(str(victim.relative_to(path)), "replaced")]
    assert content(path) == good


async def test_without_a_source_such_a_layer_is_kept(tmp_path: Path) -> None:
    path = golden("g3-sha256", tmp_path)
    before = content(path)
    result = await mend(path)
    assert not result.ok
    assert content(path) == before


# -- dry runs ----------------------------------------------------------------------------------


async def test_a_dry_run_says_the_same_of_objects_and_does_nothing(whole: Path, damaged: Path) -> None:
    with Repository.open_path(damaged) as repo:
        layers = catalogue.open_image(repo, "basic").layers
        victims = {f"objects/{each.path}" for layer in layers for each in _object_refs(repo, layer)}
    for name in victims:
        flip(damaged / name)
    before = content(damaged)
    said = await mend(damaged, *ALL, dry_run=True)
    assert content(damaged) == before
    assert not (damaged / ".composefs-async").exists() or not list((damaged / ".composefs-async").glob("scratch*"))
    done = await mend(damaged, *ALL)
    assert (said.ok, done.ok) == (True, True)
    assert (actions(said), said.affected_refs, said.recovered_refs) == (
        actions(done),
        done.affected_refs,
        done.recovered_refs,
    )


async def test_a_dry_run_foresees_that_layers_are_made_whole(tmp_path: Path) -> None:
    path = golden("g3-sha256", tmp_path)
    before = content(path)
    names = sorted(each.name for each in LAYOUTS.iterdir() if (each / "oci-layout").is_file())
    said = await mend(path, *(f"oci:{LAYOUTS}/{name}" for name in names), dry_run=True)
    assert content(path) == before
    done = await mend(path, *(f"oci:{LAYOUTS}/{name}" for name in names))
    assert said.recovered_refs == done.recovered_refs
    assert {path for path, action in actions(said) if action == "rewritten"} == {
        path for path, action in actions(done) if action == "rewritten"
    }


# -- interruptions -----------------------------------------------------------------------------


class StopError(RuntimeError):
    """The process ends here."""


class Interrupter:
    """Lets only so many links be made in the repository that is repaired."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
        self._left, self._make = left, files.replace_symlink
        monkeypatch.setattr(files, "replace_symlink", self)

    def __call__(self, target: str, name: str, *, dir_fd: int) -> None:
        if "/scratch-" not in os.readlink(f"/proc/self/fd/{dir_fd}"):
            self._left -= 1
            if self._left < 0:
                raise StopError
        self._make(target, name, dir_fd=dir_fd)


async def test_an_interruption_while_names_are_moved_leaves_what_can_be_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = golden("g3-sha256", tmp_path)
    sources = [f"oci:{LAYOUTS}/{name}" for name in ("basic", "one", "same_layer")]
    tags = {f"streams/refs/oci/{name}:latest" for name in ("basic", "one", "same_layer")}
    count, ended = 0, False
    while not ended:
        path = copy(original, tmp_path / "copied")
        with Repository.open_path(path) as repo:
            before = {tag.name: catalogue.open_image(repo, tag.name).images for tag in catalogue.images(repo)}
            with monkeypatch.context() as patched:
                Interrupter(patched, count)
                try:
                    await repair(repo, sources)
                    ended = True
                except StopError:
                    count += 1
            assert {name: catalogue.open_image(repo, name).images for name in before} == before
            # What has been brought and not named is garbage, and nothing that has a name is.
            assert (await repo.gc_async()).objects_missing == 0
            result = await repair(repo, sources)
            assert tags & set(result.affected_refs) <= set(result.recovered_refs), count
            layers = layers_of(repo)
            assert all(layers[layer] == layer for name in tags for layer in _layers_behind(repo, name)), count
    assert count > 5


def _layers_behind(repo: Repository, reference: str) -> list[str]:
    return [*catalogue.open_image(repo, reference.removeprefix("streams/refs/oci/")).layers]
