"""What names keep: nodes told by their content, roots, and walks that follow ids and never names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from composefs_async._maintenance import reachability
from composefs_async._maintenance.reachability import Kind, Node
from composefs_async.digest import ObjectId
from composefs_async.erofs.references import possible_object_ids
from composefs_async.errors import DigestMismatchError, ObjectNotFoundError, ReachUnknownError, SplitstreamError
from composefs_async.repository import Repository, state_of

from ..maintenance.garbage import image, image_bytes, store, stream, write

VECTORS = Path(__file__).parent.parent / "vectors"


def flip(repo: Repository, object_id: ObjectId) -> None:
    path = Path(repo.path, "objects", object_id.path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# -- one object --------------------------------------------------------------------------------


def test_a_stream_refers_to_its_objects_and_to_named_streams(empty: Repository) -> None:
    inner = stream(empty, "inner")
    writer, ids = write(empty, ["a", "b"], {"one": inner, "two": inner})
    node = reachability.read_node(state_of(empty), empty.write_stream(writer, "outer"))
    assert node == Node(Kind.STREAM, b"".join(ids), (("one", inner), ("two", inner)))


def test_an_image_refers_to_the_objects_of_its_files(empty: Repository) -> None:
    node = reachability.read_node(state_of(empty), image(empty, ["a", "b"]))
    assert node == Node(Kind.IMAGE, b"".join(store(empty, "a", "b")))


@pytest.mark.parametrize("content", [b"", b"Split", b"x" * 5000])
def test_anything_else_refers_to_nothing(empty: Repository, content: bytes) -> None:
    assert reachability.read_node(state_of(empty), empty.ensure_object(content).id) == Node(Kind.OTHER, b"")


@pytest.mark.parametrize("name", ["g3-sha512-layer-0", "g4-sha512-v1-manifest"])
def test_streams_of_other_programs_are_streams(tmp_path: Path, name: str) -> None:
    with Repository.init(tmp_path / "repo", insecure=True) as repo:
        content = (VECTORS / "splitstream" / f"{name}.splitstream").read_bytes()
        assert reachability.read_node(state_of(repo), repo.ensure_object(content).id).kind is Kind.STREAM


def test_a_node_that_its_digest_does_not_cover_is_not_believed(empty: Repository) -> None:
    object_id = stream(empty, "s", ["a"])
    flip(empty, object_id)
    with pytest.raises(DigestMismatchError):
        reachability.read_node(state_of(empty), object_id)
    os.unlink(Path(empty.path, "objects", object_id.path))
    with pytest.raises(ObjectNotFoundError):
        reachability.read_node(state_of(empty), object_id)


@pytest.mark.parametrize("content", [b"SplitStream" + b"\xff" * 200, b"\x28\xb5\x2f\xfd" + b"old" * 9])
def test_a_stream_that_cannot_be_read_is_an_error(empty: Repository, content: bytes) -> None:
    with pytest.raises(SplitstreamError):
        reachability.read_node(state_of(empty), empty.ensure_object(content).id)


def test_an_intact_image_that_is_malformed_keeps_whatever_looks_like_a_reference(empty: Repository) -> None:
    content = image_bytes(empty, ["a", "b"])
    ids = store(empty, "a", "b")
    assert sorted(possible_object_ids(content, empty.algorithm)) == sorted(ids)
    broken = content.replace(b"file1", b"file/")
    assert broken != content
    node = reachability.read_node(state_of(empty), empty.ensure_object(broken).id)
    assert (node.kind, {node.objects[: len(ids[0])], node.objects[len(ids[0]) :]}) == (Kind.IMAGE, set(ids))


# -- names -------------------------------------------------------------------------------------


def test_roots_are_references_and_additional_names(empty: Repository) -> None:
    one, two, three = (
        stream(empty, name, [name], reference=ref) for name, ref in [("a", "x/y"), ("b", None), ("c", None)]
    )
    picture = image(empty, ["d"], "picture")
    roots = reachability.roots(state_of(empty), ["b", "refs/x/y", "unknown", picture.hex()])
    assert roots.links == {"streams": {"a": one, "b": two, "c": three}, "images": {picture.hex(): picture}}
    assert [(each.path, each.name, each.object_id) for each in roots.references] == [
        ("images/refs/picture", picture.hex(), picture),
        ("streams/refs/x/y", "a", one),
    ]
    assert roots.additional == (("streams", "b"), ("images", picture.hex()))
    assert roots.names == {("streams", "a"), ("streams", "b"), ("images", picture.hex())}
    assert roots.ids == {one: "streams/refs/x/y", two: "streams/b", picture: "images/refs/picture"}
    assert roots.notes == ()


def test_roots_stay_the_same_value_until_a_name_changes(empty: Repository) -> None:
    stream(empty, "a", ["a"], reference="r")
    known = reachability.roots(state_of(empty))
    assert reachability.roots(state_of(empty), (), known) is known
    empty.name_stream("a", "s")
    assert [each.path for each in reachability.roots(state_of(empty), (), known).references] == [
        "streams/refs/r",
        "streams/refs/s",
    ]


def test_a_reference_of_january_means_the_stream_of_its_config(empty: Repository) -> None:
    digest = f"sha256:{'ab' * 32}"
    config = stream(empty, f"oci-config-{digest}", ["a"])
    refs = Path(empty.path, "streams/refs")
    refs.mkdir()
    os.symlink(f"../{digest}", refs / "old")
    roots = reachability.roots(state_of(empty))
    assert [(each.name, each.object_id) for each in roots.references] == [(f"oci-config-{digest}", config)]
    assert roots.notes == ()


def test_what_leads_nowhere_is_noted(empty: Repository) -> None:
    stream(empty, "a", reference="r")
    root = Path(empty.path)
    (root / "images/refs").mkdir(parents=True)
    os.symlink("../gone", root / "streams/refs/dangling")
    os.symlink("/etc/passwd", root / "streams/foreign")
    os.symlink("../foreign", root / "streams/refs/to-foreign")
    os.symlink(f"../objects/{bytes(31).hex()[:2]}/{'0' * 30}", root / "streams/short")
    (root / "streams/file").write_text("x")
    (root / "streams/directory").mkdir()
    (root / "images/refs/file").write_text("x")
    found = [(note.kind, note.path) for note in reachability.roots(state_of(empty)).notes]
    assert found == [
        ("entry-not-symlink", "streams/directory"),
        ("entry-not-symlink", "streams/file"),
        ("link-target-invalid", "streams/foreign"),
        ("link-target-invalid", "streams/short"),
        ("entry-not-symlink", "images/refs/file"),
        ("broken-symlink", "streams/refs/dangling"),
        ("broken-symlink", "streams/refs/to-foreign"),
    ]


def test_a_category_that_is_no_directory_is_noted(empty: Repository) -> None:
    Path(empty.path, "images").write_text("x")
    found = reachability.roots(state_of(empty))
    assert [(note.kind, note.path) for note in found.notes] == [("unexpected-file-type", "images")]


# -- walks -------------------------------------------------------------------------------------


def test_a_walk_follows_ids_where_names_are_gone(empty: Repository) -> None:
    layer = stream(empty, "layer", ["a"])
    picture = image(empty, ["b"])
    config = stream(empty, "config", named={"layer": layer, "composefs.image": picture})
    manifest = stream(empty, "manifest", named={"config": config, "layer": layer})
    for name in ("streams/layer", "streams/config", f"images/{picture.hex()}"):
        os.unlink(Path(empty.path, name))
    reached = reachability.walk(state_of(empty), [manifest])
    assert set(reached.nodes) == {manifest, config, layer, picture}
    assert (reached.missing, reached.notes) == (set(), [])


def test_what_is_missing_is_noted_and_looked_for_again(empty: Repository) -> None:
    layer = stream(empty, "layer", ["a"])
    manifest = stream(empty, "manifest", named={"layer": layer})
    path = Path(empty.path, "objects", layer.path)
    content = path.read_bytes()
    path.unlink()
    reached = reachability.walk(state_of(empty), [manifest])
    assert (list(reached.nodes), reached.missing) == ([manifest], {layer})
    assert [(note.kind, note.path) for note in reached.notes] == [("missing-object-ref", f"objects/{layer.path}")]
    path.write_bytes(content)
    assert [object_id for object_id, _ in reachability.visit(state_of(empty), [manifest], None, reached)] == [layer]
    assert reached.notes == []


@pytest.mark.parametrize("kind", ["stream", "image"])
def test_a_damaged_node_makes_it_unknown_what_is_reached(empty: Repository, kind: str) -> None:
    layer = stream(empty, "layer", ["a"]) if kind == "stream" else image(empty, ["a"])
    manifest = stream(empty, "manifest", named={"layer": layer})
    flip(empty, layer)
    with pytest.raises(ReachUnknownError, match=f"{layer.path}.*fsck --repair"):
        reachability.walk(state_of(empty), [manifest])
