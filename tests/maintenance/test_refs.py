"""References of streams and images are listed, added, renamed, removed and pruned."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from composefs_async._repo import publish
from composefs_async._repo.publish import Category
from composefs_async.digest import Algorithm, ObjectId
from composefs_async.errors import (
    ImageNotFoundError,
    InvalidNameError,
    NotFoundError,
    ReadOnlyRepositoryError,
    StreamNotFoundError,
)
from composefs_async.repository import Repository
from composefs_async.results import NamedReference

from ..maintenance.generations import Image, january

pytestmark = pytest.mark.usefixtures("no_leaks")

CATEGORIES: list[Category] = ["streams", "images"]
categories = pytest.mark.parametrize("category", CATEGORIES)
OTHER = "sha256:" + 64 * "0"


class Named:
    """A repository with a stream and an image, and the reference ``old`` to each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.repo = Repository.init(path, algorithm=Algorithm.SHA256, insecure=True)
        self.repo.ensure_stream("stream", 0, lambda writer: writer.write_inline(b"x"), "old")
        self.image: ObjectId = self.repo.write_image(b"an image", "old")

    def target(self, category: Category) -> str:
        return "stream" if category == "streams" else self.image.hex()

    def links(self, category: Category) -> dict[str, str]:
        top = self.path / category / "refs"
        return {str(each.relative_to(top)): os.readlink(each) for each in top.rglob("*") if each.is_symlink()}


@pytest.fixture
def named(tmp_path: Path) -> Iterator[Named]:
    found = Named(tmp_path / "repo")
    with found.repo:
        yield found


# -- list --------------------------------------------------------------------------------------


def test_all_are_listed_with_what_they_mean_also_where_that_is_not_there(named: Named) -> None:
    repo = named.repo
    repo.name_stream("stream", "a/b/c")
    for name, target in {"lost": "../gone", "oci/t": f"../../oci-manifest-{OTHER}", "odd": "..", "empty": "./"}.items():
        (named.path / "streams/refs/oci").mkdir(exist_ok=True)
        os.symlink(target, named.path / "streams/refs" / name)
    repo.ensure_stream("bare", 0, lambda writer: writer.write_inline(b"y"), "objectless")
    bare = repo.has_stream("bare")
    assert bare is not None
    os.unlink(named.path / "objects" / bare.path)
    (named.path / "images/refs/no link").touch()
    assert repo.references() == [
        NamedReference("images", "old", named.image.hex(), False),
        NamedReference("streams", "a/b/c", "stream", False),
        NamedReference("streams", "empty", "", True),
        NamedReference("streams", "lost", "gone", True),
        NamedReference("streams", "objectless", "bare", True),
        NamedReference("streams", "oci/t", f"oci-manifest-{OTHER}", True),
        NamedReference("streams", "odd", "..", True),
        NamedReference("streams", "old", "stream", False),
    ]


@pytest.mark.parametrize("dangling", [True, False])
def test_those_of_january_mean_the_stream_of_the_config(dangling: bool, tmp_path: Path) -> None:
    image = Image.make(tmp_path / "layout")
    january(tmp_path / "repo", Algorithm.SHA256, image, "a/b", dangling=dangling)
    Repository.upgrade(tmp_path / "repo")
    with Repository.open_path(tmp_path / "repo") as repo:
        config = f"oci-config-{image.config_digest}"
        assert repo.references() == [NamedReference("streams", "a/b", config, False)]
        assert repo.named_streams() == [("a/b", config)]
        assert repo.has_stream("refs/a/b") == repo.has_stream(config)
        assert b"".join(repo.merge_splitstream("refs/a/b")) == image.config
        os.unlink(tmp_path / "repo/streams" / config)
        assert [each.dangling for each in repo.references()] == [True]
        assert repo.has_stream("refs/a/b") is None


# -- add ---------------------------------------------------------------------------------------


@categories
def test_one_is_added_and_an_existing_one_replaced_only_on_request(category: Category, named: Named) -> None:
    repo, target = named.repo, named.target(category)
    repo.add_reference(category, "x/new", target)
    assert named.links(category) == {"old": f"../{target}", "x/new": f"../../{target}"}
    repo.ensure_stream("second", 0, lambda writer: writer.write_inline(b"2"))
    other = "second" if category == "streams" else repo.write_image(b"second").hex()
    with pytest.raises(FileExistsError) as caught:
        repo.add_reference(category, "x/new", other)
    assert caught.value.filename == str(named.path / category / "refs/x/new")
    repo.add_reference(category, "x/new", other, replace=True)
    assert named.links(category) == {"old": f"../{target}", "x/new": f"../../{other}"}


@categories
@pytest.mark.parametrize("name", ["gone", "f" * 64])
def test_none_is_added_that_would_dangle(category: Category, name: str, named: Named) -> None:
    with pytest.raises(ImageNotFoundError if category == "images" else StreamNotFoundError, match=name):
        named.repo.add_reference(category, "new", name)
    assert list(named.links(category)) == ["old"]


# -- rename ------------------------------------------------------------------------------------


@categories
@pytest.mark.parametrize(("new", "depth"), [("new", 1), ("a/b/new", 3), ("%2F", 1), ("é\n", 1), ("x" * 255, 1)])
def test_a_renamed_one_leads_to_the_same(category: Category, new: str, depth: int, named: Named) -> None:
    named.repo.rename_reference(category, "old", new)
    assert named.links(category) == {new: "../" * depth + named.target(category)}
    named.repo.rename_reference(category, new, "old")
    assert named.links(category) == {"old": f"../{named.target(category)}"}


@categories
def test_renaming_to_itself_changes_nothing(category: Category, named: Named) -> None:
    named.repo.rename_reference(category, "old", "old")
    assert list(named.links(category)) == ["old"]


@categories
def test_an_existing_name_is_taken_only_on_request(category: Category, named: Named) -> None:
    os.symlink(f"../{OTHER}", named.path / category / "refs/new")
    before = named.links(category)
    with pytest.raises(FileExistsError):
        named.repo.rename_reference(category, "old", "new")
    assert named.links(category) == before
    named.repo.rename_reference(category, "old", "new", replace=True)
    assert list(named.links(category)) == ["new"]


@categories
@pytest.mark.parametrize("name", ["gone", "old/below", "old/../old"])
def test_what_is_not_there_cannot_be_renamed(category: Category, name: str, named: Named) -> None:
    with pytest.raises((NotFoundError, InvalidNameError)):
        named.repo.rename_reference(category, name, "new")
    assert list(named.links(category)) == ["old"]


@categories
def test_a_crash_between_its_steps_leaves_both_names(
    category: Category, named: Named, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*arguments: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(publish, "remove_reference", crash)
    with pytest.raises(KeyboardInterrupt):
        named.repo.rename_reference(category, "old", "new")
    assert named.links(category) == {name: f"../{named.target(category)}" for name in ("new", "old")}
    monkeypatch.undo()
    named.repo.rename_reference(category, "old", "new")
    assert list(named.links(category)) == ["new"]


def test_renaming_sets_a_dangling_one_of_january_right(tmp_path: Path) -> None:
    image = Image.make(tmp_path / "layout")
    january(tmp_path / "repo", Algorithm.SHA256, image)
    Repository.upgrade(tmp_path / "repo")
    with Repository.open_path(tmp_path / "repo") as repo:
        repo.rename_reference("streams", "app", "kept/app")
    assert os.readlink(tmp_path / "repo/streams/refs/kept/app") == f"../../oci-config-{image.config_digest}"
    assert os.path.exists(tmp_path / "repo/streams/refs/kept/app")


# -- remove ------------------------------------------------------------------------------------


@categories
@pytest.mark.parametrize(("name", "there"), [("old", True), ("gone", False), ("old/x", False), ("directory", False)])
def test_removing_tells_whether_it_was_there(category: Category, name: str, there: bool, named: Named) -> None:
    (named.path / category / "refs/directory").mkdir()
    assert named.repo.remove_reference(category, name) == there
    assert list(named.links(category)) == ([] if there else ["old"])


# -- hostile -----------------------------------------------------------------------------------

CALLS: dict[str, Callable[[Repository, Category, str, str], object]] = {
    "add": lambda repo, category, name, target: repo.add_reference(category, name, target),
    "rename from": lambda repo, category, name, target: repo.rename_reference(category, name, "new"),
    "rename to": lambda repo, category, name, target: repo.rename_reference(category, "old", name),
    "remove": lambda repo, category, name, target: repo.remove_reference(category, name),
}


@categories
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "name", ["", "/", "a/", "/a", "..", "../../meta.json", "a/../../x", ".", "a//b", "a\0b", "x" * 256]
)
def test_names_that_would_leave_their_directory_are_refused(
    category: Category, call: str, name: str, named: Named
) -> None:
    with pytest.raises(InvalidNameError):
        CALLS[call](named.repo, category, name, named.target(category))
    assert named.links(category) == {"old": f"../{named.target(category)}"}


@categories
def test_directories_that_are_links_are_not_followed(category: Category, named: Named, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    os.symlink("anywhere", outside / "precious")
    os.symlink(outside, named.path / category / "refs/away")
    for call in ("add", "rename to"):
        with pytest.raises(NotADirectoryError) as caught:
            CALLS[call](named.repo, category, "away/new", named.target(category))
        assert caught.value.filename == str(named.path / category / "refs/away")
    assert not named.repo.remove_reference(category, "away/precious")
    assert os.listdir(outside) == ["precious"]
    assert os.path.lexists(named.path / category / "refs/old")


def test_nothing_changes_in_a_repository_that_must_not_be_written(named: Named) -> None:
    meta = named.path / "meta.json"
    meta.write_text(meta.read_text().replace('"v1_erofs"', '"v1_erofs", "later"'))
    with Repository.open_path(named.path) as repo:
        for call in CALLS.values():
            with pytest.raises(ReadOnlyRepositoryError):
                call(repo, "streams", "old" if call is not CALLS["rename to"] else "new", "stream")
    assert named.links("streams") == {"old": "../stream"}


# -- prune -------------------------------------------------------------------------------------


def test_referrers_whose_subject_or_self_is_gone_are_pruned(named: Named) -> None:
    repo = named.repo
    digests = [f"sha256:{number:064}" for number in range(4)]
    for digest in digests[:2]:
        repo.ensure_stream(f"oci-manifest-{digest}", 0, lambda writer: writer.write_inline(b"m"))
    top = named.path / "streams/refs/oci-referrers"
    kept, lost_artifact, lost_subject = (digests[0], digests[1]), (digests[0], digests[2]), (digests[3], digests[1])
    for subject, artifact in (kept, lost_artifact, lost_subject):
        (top / subject).mkdir(parents=True, exist_ok=True)
        os.symlink(f"../../../oci-manifest-{artifact}", top / subject / artifact)
    for subject in (digests[1], digests[2]):  # as an interruption leaves them: one with a manifest, one without
        (top / subject).mkdir()
    os.symlink("../gone", named.path / "streams/refs/lost")
    stale = [
        NamedReference("streams", f"oci-referrers/{subject}/{artifact}", f"oci-manifest-{artifact}", lost)
        for (subject, artifact), lost in ((lost_artifact, True), (lost_subject, False))
    ]
    lost = NamedReference("streams", "lost", "gone", True)
    assert repo.prune_references(dry_run=True) == stale
    assert repo.prune_references(dangling=True, dry_run=True) == [lost, *stale]
    assert repo.prune_references() == stale
    assert [f"{each.parent.name}/{each.name}" for each in top.glob("*/*")] == ["/".join(kept)]
    assert sorted(os.listdir(top)) == [digests[0], digests[1]]
    assert repo.prune_references(dangling=True) == [lost]
    assert sorted(named.links("streams")) == [f"oci-referrers/{kept[0]}/{kept[1]}", "old"]


@pytest.mark.anyio
async def test_the_async_forms_do_the_same(tmp_path: Path) -> None:
    named = Named(tmp_path / "repo")
    async with named.repo as repo:
        await repo.add_reference_async("streams", "new", "stream")
        await repo.rename_reference_async("streams", "new", "newer")
        assert [each.name for each in await repo.references_async()] == ["old", "newer", "old"]
        assert await repo.remove_reference_async("streams", "newer")
        assert await repo.prune_references_async(dangling=True) == []
    assert named.links("streams") == {"old": "../stream"}
