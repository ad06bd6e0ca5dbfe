"""``oci images``, ``inspect``, ``tag``, ``untag``: what cfsctl prints of the same repository."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from composefs_async.digest import ObjectId
from composefs_async.errors import InvalidNameError
from composefs_async.repository import Repository

Golden = Callable[[str], tuple[Path, Any]]

FLAVOURS = ["g4-sha512-v1", "g4-sha256-v2", "g3-sha512"]
BASIC = "sha256:8e66440a93d68590e713aa309c3bc6651670904597e64480b0acccc87cb89f21"

TABLE = """\
┌───────┬──────────────┬───────┬────────┬──────┐
│ NAME  ┆ DIGEST       ┆ ARCH  ┆ LAYERS ┆ REFS │
╞═══════╪══════════════╪═══════╪════════╪══════╡
│ basic ┆ 8e66440a93d6 ┆ amd64 ┆ 2      ┆ 0    │
├╌╌╌╌╌╌╌┼╌╌╌╌╌╌╌╌╌╌╌╌╌╌┼╌╌╌╌╌╌╌┼╌╌╌╌╌╌╌╌┼╌╌╌╌╌╌┤
│ other ┆ 8e66440a93d6 ┆ amd64 ┆ 2      ┆ 0    │
└───────┴──────────────┴───────┴────────┴──────┘
"""


def by_name(images: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(images, key=lambda image: str(image["name"]))


@pytest.mark.parametrize("flavour", ["g4-sha512-v1", "g4-sha256-v2"])
def test_images_prints_the_json_of_cfsctl_sorted_by_name(cli: Any, golden: Golden, flavour: str) -> None:
    path, facts = golden(flavour)
    result = cli("--repo", path, "oci", "images", "--json")
    assert (result.code, result.err) == (0, "")
    assert result.json == {"images": by_name(facts["oci images --json"]["images"])}
    assert [*result.json["images"][0]] == [*facts["oci images --json"]["images"][0]]


@pytest.mark.parametrize("flavour", ["g4-sha512-v1", "g4-sha256-v2"])
def test_inspect_prints_the_json_of_cfsctl(cli: Any, golden: Golden, flavour: str) -> None:
    path, facts = golden(flavour)
    for name, known in facts["images"].items():
        result = cli("--repo", path, "oci", "inspect", name)
        assert (result.code, result.json) == (0, known["inspect"])
        assert [*result.json] == [*known["inspect"]]


def test_inspect_prints_manifest_and_config_byte_for_byte(cli: Any, golden: Golden) -> None:
    path, facts = golden("g4-sha512-v1")
    known = facts["images"]["basic:latest"]["inspect"]
    for name in ("basic:latest", f"@{BASIC}", BASIC):
        assert cli("--repo", path, "oci", "inspect", name, "--manifest").text == known["manifest"] + "\n"
        assert cli("--repo", path, "oci", "inspect", name, "--config").text == known["config"] + "\n"


def test_images_are_listed_in_a_table_like_that_of_cfsctl(cli: Any, pulled: Path) -> None:
    assert cli("--repo", pulled, "oci", "tag", BASIC, "other").text == f"Tagged {BASIC} as other\n"
    result = cli("--repo", pulled, "oci", "images")
    assert (result.code, result.text, result.err) == (0, TABLE, "")


def test_a_repository_without_images_says_so(cli: Any, empty: Path) -> None:
    assert cli("--repo", empty, "oci", "images").text == "No images found\n"
    assert cli("--repo", empty, "oci", "images", "--json").json == {"images": []}


def test_a_tag_is_removed_once(cli: Any, pulled: Path) -> None:
    assert cli("--repo", pulled, "oci", "untag", "basic").text == "Removed tag basic\n"
    again = cli("--repo", pulled, "oci", "untag", "basic")
    assert (again.code, again.text, again.err) == (3, "", "composefs-async: tag not found: basic\n")
    assert cli("--repo", pulled, "oci", "images").text == "No images found\n"


def test_an_image_that_is_not_there_gets_no_tag(cli: Any, pulled: Path) -> None:
    unknown = f"sha256:{'0' * 64}"
    result = cli("--repo", pulled, "oci", "tag", unknown, "x")
    assert (result.code, result.err) == (3, f"composefs-async: manifest not found: {unknown}\n")
    assert [image["name"] for image in cli("--repo", pulled, "oci", "images", "--json").json["images"]] == ["basic"]


def test_a_broken_image_is_listed_with_what_is_wrong(cli: Any, pulled: Path) -> None:
    os.unlink(pulled / "streams" / f"oci-manifest-{BASIC}")
    result = cli("--repo", pulled, "oci", "images")
    assert "│ basic ┆ 8e66440a93d6 ┆ broken ┆        ┆ 0    │" in result.text
    assert (result.code, result.err) == (0, f"composefs-async: basic: manifest not found: {BASIC}\n")
    (listed,) = cli("--repo", pulled, "oci", "images", "--json").json["images"]
    assert listed["error"] == f"manifest not found: {BASIC}"


def test_names_cannot_send_escape_sequences_to_a_terminal(cli: Any, pulled: Path) -> None:
    name = "a\x1b[31m\n日本"
    assert cli("--repo", pulled, "oci", "tag", BASIC, name).text == f"Tagged {BASIC} as a\\x1b[31m\\n日本\n"
    table = cli("--repo", pulled, "oci", "images").text.splitlines()
    assert table[3].startswith("│ a\\x1b[31m\\n日本 ┆ 8e66440a93d6 ┆")
    names = [image["name"] for image in cli("--repo", pulled, "oci", "images", "--json").json["images"]]
    assert names == [name, "basic"]


def test_a_name_that_is_not_utf8_is_valid_json(cli: Any, pulled: Path) -> None:
    tags = pulled / "streams/refs/oci"
    os.symlink(os.readlink(tags / "basic"), os.fsencode(tags) + b"/\xff")
    result = cli("--repo", pulled, "oci", "images", "--json")
    assert [image["name"] for image in result.json["images"]] == ["basic", "\udcff"]
    assert "│ \\udcff ┆" in cli("--repo", pulled, "oci", "images").text


# -- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sha256:12", "@sha256:12", "@nope", "@", "sha512:" + "0" * 64])
def test_what_looks_like_a_digest_but_is_none_is_a_wrong_argument(name: str, repo: Path, cli: Any) -> None:
    told = cli.on(repo)("oci", "inspect", name).failed(2, name).err
    assert "it is no content digest" in told


@pytest.mark.parametrize("command", [["oci", "inspect"], ["oci", "untag"], ["cat"]], ids=" ".join)
@pytest.mark.parametrize(("name", "code"), [("nope", 3), ("", 2), ("..", 2), ("x" * 300, 2)])
def test_missing_and_impossible_names_differ(command: list[str], name: str, code: int, repo: Path, cli: Any) -> None:
    found = cli.on(repo)(*command, name).failed(code, name)
    if name == "nope":
        kind = {"inspect": "image", "untag": "tag", "cat": "stream"}[command[-1]]
        assert found.err == f"composefs-async: {kind} not found: nope\n"


def test_tag_that_looks_like_a_digest_is_found_first(repo: Path, cli: Any) -> None:
    cli.on(repo)("oci", "tag", BASIC, "sha256:12").good()
    assert cli.on(repo)("oci", "inspect", "sha256:12").good().json == cli.on(repo)("oci", "inspect", "basic").json


# -- names of images ---------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [lambda digest: digest, lambda digest: digest[:13], lambda digest: digest[7:13]])
@pytest.mark.parametrize("at", ["", "@"])
def test_image_is_named_by_tag_digest_or_unique_prefix(cut: Any, at: str, cli: Any, pulled: Path) -> None:
    name = at + cut(BASIC)
    whole = cli.on(pulled)("oci", "inspect", "basic").good().out
    assert cli.on(pulled)("oci", "inspect", name).good().out == whole
    assert cli.on(pulled)("oci", "tag", name, "other").good().text == f"Tagged {BASIC} as other\n"
    assert cli.on(pulled)("oci", "tag", "other", "third").good().text == f"Tagged {BASIC} as third\n"
    cli.on(pulled)("oci", "inspect", "abcdef").failed(3, "abcdef")
    cli.on(pulled)("oci", "tag", "sha256:12", "x").failed(2, "sha256:12")


def test_prefix_of_two_digests_is_refused_and_a_tag_comes_first(
    cli: Any, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from composefs_async.oci import catalogue

    cli.on(repo)("oci", "tag", "one", BASIC[7:15]).good()
    digest = cli.on(repo)("oci", "images", "--json").json["images"]
    one = next(image["manifest_digest"] for image in digest if image["name"] == "one")
    with Repository.open_path(repo) as opened:
        assert catalogue.resolve(opened, BASIC[7:15]) == one
        twins = ["oci-manifest-sha256:" + "ab" * 3 + end * 58 for end in "01"]
        monkeypatch.setattr(Repository, "named_streams", lambda *_: [(str(n), each) for n, each in enumerate(twins)])
        with pytest.raises(InvalidNameError, match="beginning of 2 digests"):
            catalogue.resolve(opened, "ababab")


def test_images_are_listed_with_whole_digests_where_asked(cli: Any, pulled: Path) -> None:
    assert BASIC[7:] in cli.on(pulled)("oci", "images", "--no-trunc").good().text


# -- files of images ---------------------------------------------------------------------------


def test_every_file_of_an_image_is_printed_and_copied(cli: Any, pulled: Path, tmp_path: Path) -> None:
    on = cli.on(pulled)
    from composefs_async.oci import catalogue, image_tree, read_file
    from composefs_async.tree import ExternalFile, InlineFile
    from composefs_async.tree.walk import walk

    with Repository.open_path(pulled) as repo:
        tree = image_tree(repo, catalogue.open_image(repo, "basic"))
        contents = {
            os.fsdecode(path): repo.read_object(ObjectId(inode.digest))
            if isinstance(inode, ExternalFile)
            else inode.content
            for path, inode in walk(tree)
            if isinstance(inode, ExternalFile | InlineFile)
        }
        assert contents
        for path, content in contents.items():
            assert read_file(repo, "basic", path) == content
    for path, content in contents.items():
        for image in ("basic", "tag:basic", "oci:basic", BASIC[:14]):
            assert on("cat", image, path).good().out == content
        on("cp", f"basic:{path}", tmp_path / "copy").good()
        assert (tmp_path / "copy").read_bytes() == content
        on("cp", f"basic:{path}", tmp_path).good()
        assert (tmp_path / os.path.basename(path)).read_bytes() == content
    on("cat", "basic", "/no/such").failed(3, "file not found: /no/such")
    on("cat", "basic", "/").failed(5, "not a regular file")
    on("cat", "nope", "/x").failed(3, "nope")


def test_damaged_file_of_an_image_is_not_printed(cli: Any, pulled: Path) -> None:
    from composefs_async.oci import catalogue, image_tree
    from composefs_async.tree import ExternalFile
    from composefs_async.tree.walk import walk

    with Repository.open_path(pulled) as repo:
        tree = image_tree(repo, catalogue.open_image(repo, "basic"))
    path, found = next((path, inode) for path, inode in walk(tree) if isinstance(inode, ExternalFile))
    place = pulled / "objects" / os.fsdecode(found.path)
    place.chmod(0o644)
    place.write_bytes(bytes(found.size))
    cli.on(pulled)("cat", "basic", os.fsdecode(path)).failed(4, "expected digest")


def test_links_are_followed_inside_the_tree_only() -> None:
    from composefs_async.errors import NotFoundError
    from composefs_async.oci.reading import find_following
    from composefs_async.tree.dumpfile import parse_dump

    tree = parse_dump(
        b"/ 0 40755 3 0 0 0 0.0 - - -\n/d 0 40755 2 0 0 0 0.0 - - -\n/d/f 1 100644 1 0 0 0 0.0 - x -\n"
        b"/d/up 10 120777 1 0 0 0 0.0 ../../../d/f - -\n/l 2 120777 1 0 0 0 0.0 /d - -\n"
        b"/loop 4 120777 1 0 0 0 0.0 loop - -\n"
    )
    wanted = tree.children[b"d"].children[b"f"]  # type: ignore[attr-defined]
    for path in (b"/d/f", b"d/./f", b"/l/f", b"/d/up", b"/../d/f", b"/l/../d/f"):
        assert find_following(tree, path) is wanted, path
    for path in (b"/loop", b"/d/f/x", b"/nope"):
        with pytest.raises(NotFoundError):
            find_following(tree, path)


def test_dates_and_sizes_are_there_on_request(cli: Any, repo: Path) -> None:
    on = cli.on(repo)
    text = on("oci", "images", "--long").good().text
    assert "CREATED" in text
    assert "2023-11-14" in text
    by_name = {each["name"]: each for each in on("oci", "images", "--long", "--json").good().json["images"]}
    manifest = on("oci", "inspect", "basic", "--manifest").good().json
    assert by_name["basic"]["size"] == sum(each["size"] for each in manifest["layers"])
    assert all("size" not in each for each in on("oci", "images", "--json").good().json["images"])


def test_the_summary_names_what_people_look_for(cli: Any, repo: Path) -> None:
    on = cli.on(repo)
    whole = on("oci", "inspect", "basic").good().json
    text = on("oci", "inspect", "basic", "--summary").good().text
    manifest = json.loads(whole["manifest"])
    for word in (manifest["config"]["digest"], "linux/amd64", "2023-11-14", "composefs.image"):
        assert word in text
    for diff_id in json.loads(whole["config"])["rootfs"]["diff_ids"]:
        assert diff_id in text


def test_layers_are_listed_with_what_they_add(cli: Any, repo: Path) -> None:
    on = cli.on(repo)
    found = on("oci", "layers", "basic", "--json").good().json["layers"]
    diff_ids = on("oci", "inspect", "basic", "--config").good().json["rootfs"]["diff_ids"]
    assert [each["name"] for each in found] == diff_ids
    assert [sorted(each) for each in found] == [["created_by", "exclusive", "name", "packed_size", "shared"]] * 2
    text = on("oci", "layers", "basic").good().text
    assert all(each in text for each in diff_ids)
    on("oci", "layers", "nothing").failed(3, "nothing")
