"""The commands for stores, as people use them: what they print, their exit codes, and spoilt stores of each kind."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from composefs_async.repository import Repository

from ..exchange.conftest import Server, gofakes3  # noqa: F401
from .conftest import Cli, Run


@pytest.fixture
def store(cli: Cli, repo: Path, tmp_path: Path) -> Path:
    """A store with the images ``basic`` and ``one``."""
    path = tmp_path / "store"
    cli("store", "init", path).good()
    cli.on(repo)("publish", "basic", path, "--name", "team/basic").good()
    cli.on(repo)("publish", "one", f"file://{path}").good()
    return path


def tags(path: Path) -> list[str]:
    with Repository.open_path(path) as opened:
        return [name for name, _ in opened.named_streams("oci")]


def test_an_image_goes_from_one_machine_to_another(cli: Cli, repo: Path, store: Path, empty: Path) -> None:
    run = cli.on(empty)("fetch", store, "team/basic", "--tag", "basic").good()
    assert [line.split()[0] for line in run.text.splitlines()] == [
        *("root", "manifest", "image", "tagged", "objects", "moved")
    ]
    assert tags(empty) == ["basic"]
    cli.on(empty)("fsck").good()
    again = cli.on(empty)("fetch", store, "team/basic", "--tag", "basic", "--json").good().json
    assert (again["objects_fetched"], again["requests"], again["failed_sources"]) == (0, 2, {})
    image = again["image_id"]
    expected = cli.on(empty)("fetch", store, "team/basic", "--expect", f"sha512:{image}", "--json").good().json
    assert expected["tag"] == "team/basic"
    same = cli.on(repo)("publish", "basic", store, "--name", "team/basic", "--json").good().json
    assert (same["unchanged"], same["requests"], same["manifest_digest"]) == (True, 3, again["manifest_digest"])


def test_what_a_store_has_is_listed(cli: Cli, store: Path) -> None:
    assert [each["name"] for each in cli("store", "ls", store, "--json").good().json] == ["one", "team/basic"]
    assert "team/basic" in cli("store", "ls", store).good().text
    used = cli("store", "du", store, "--json").good().json
    assert [sorted(each) for each in used["refs"]] == [["exclusive", "name", "shared"]] * 2
    assert "2 names" in cli("store", "index", store).good().text
    index = json.loads((store / "index.json").read_bytes())
    assert [each["annotations"] for each in index["manifests"]] == [
        {"org.opencontainers.image.ref.name": name} for name in ("one", "team/basic")
    ]
    rows = cli("store", "table", store, "team/basic", "--json").good().json
    assert {row["kind"] for row in rows} == {"file", "stream", "image", "document"}
    assert sum(row["size"] for row in rows) > 0
    assert cli("store", "table", store, "one").good().text.count("\n") > 5


def test_names_are_removed_and_garbage_waits_for_its_time(cli: Cli, store: Path) -> None:
    cli("store", "remove", store, "one").good()
    cli("store", "remove", store, "one").failed(3, "one")
    assert [each["name"] for each in cli("store", "ls", store, "--json").good().json] == ["team/basic"]
    dry = cli("store", "gc", store, "-n", "--json").good().json
    assert (dry["young_blobs"], dry["dry_run"]) == (4, True)
    for path in store.rglob("*"):
        os.utime(path, (1, 1))
    run = cli("store", "gc", store, "--json").good().json
    assert (run["condemned_blobs"], run["deleted_blobs"], run["live_blobs"]) == (4, 0, 4)


def test_a_mirror_is_the_same_and_heals(cli: Cli, store: Path, empty: Path, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    done = cli("store", "mirror", store, mirror, "--json").good().json
    assert (done["names"], done["removed"]) == (2, 0)
    assert cli("store", "mirror", store, mirror, "--json").good().json["names"] == 0
    for name in ("refs", "blobs", "composefs-store.json"):
        assert not os.path.isdir(store / name) or sorted(os.listdir(store / name)) == sorted(os.listdir(mirror / name))
    [pack] = [path for path in (store / "blobs/sha256").iterdir() if path.stat().st_size > 50_000]
    pack.write_bytes(bytes(pack.stat().st_size))
    run = cli.on(empty)("fetch", store, "team/basic", "--mirror", mirror).good()
    assert "healed" in run.text or "moved" in run.text
    cli("store", "remove", store, "one").good()
    assert cli("store", "mirror", store, mirror, "--json").good().json["removed"] == 1


def spoil_pack(store: Path) -> None:
    [pack] = [path for path in (store / "blobs/sha256").iterdir() if path.stat().st_size > 50_000]
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)


def cut_pack(store: Path) -> None:
    [pack] = [path for path in (store / "blobs/sha256").iterdir() if path.stat().st_size > 50_000]
    os.truncate(pack, 1000)


def lose_pack(store: Path) -> None:
    [pack] = [path for path in (store / "blobs/sha256").iterdir() if path.stat().st_size > 50_000]
    pack.unlink()


def spoil_reference(store: Path) -> None:
    path = store / "refs/team%2Fbasic"
    path.write_bytes(path.read_bytes()[:-10])


def spoil_manifest(store: Path) -> None:
    path = store / "refs/team%2Fbasic"
    ref = json.loads(path.read_bytes())
    ref["digest"] = "sha256:" + "0" * 64
    path.write_text(json.dumps(ref))


def lose_table(store: Path) -> None:
    for path in (store / "blobs/sha256").iterdir():
        if path.read_bytes()[:4] == b"\x28\xb5\x2f\xfd":
            path.unlink()


def spoil_table(store: Path) -> None:
    for path in (store / "blobs/sha256").iterdir():
        if path.read_bytes()[:4] == b"\x28\xb5\x2f\xfd" and path.stat().st_size < 50_000:
            path.write_bytes(path.read_bytes() + b"x")


def lose_store(store: Path) -> None:
    shutil.rmtree(store)


def spoil_description(store: Path) -> None:
    (store / "composefs-store.json").write_bytes(b"{")


SPOILT = {
    spoil_pack: (4, "object"),
    cut_pack: (4, "ends"),
    lose_pack: (9, "not there"),
    spoil_reference: (4, "JSON"),
    spoil_manifest: (4, "digest"),
    lose_table: (9, "table"),
    spoil_table: (4, "table"),
    lose_store: (9, "no store"),
    spoil_description: (4, "composefs-store.json"),
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_spoilt_store_brings_one_line_and_no_name(cli: Cli, store: Path, empty: Path, spoil: object) -> None:
    code, word = SPOILT[spoil]  # type: ignore[index]
    spoil(store)  # type: ignore[operator]
    cli.on(empty)("fetch", store, "team/basic", "--progress", "none").failed(code, word)
    assert tags(empty) == []
    cli.on(empty)("fsck").good()


@pytest.mark.parametrize(
    "spoil", [spoil_pack, cut_pack, lose_pack, spoil_reference, spoil_manifest, spoil_table, lose_table]
)
def test_a_check_of_a_spoilt_store_finds_it(cli: Cli, store: Path, spoil: object) -> None:
    assert cli("store", "fsck", store, "--json").good().json["ok"]
    spoil(store)  # type: ignore[operator]
    run: Run = cli("store", "fsck", store)
    assert run.code == 1
    assert "status: damaged" in run.text
    found = cli("store", "fsck", store, "--json").json["findings"]
    assert found
    assert all(each["names"] for each in found)


def test_wrong_names_and_places(cli: Cli, repo: Path, store: Path, empty: Path) -> None:
    cli.on(empty)("fetch", store, "nothing").failed(3, "nothing")
    cli.on(empty)("fetch", store, "team/basic", "--expect", "sha512:" + "0" * 128).failed(4, "expected")
    cli.on(empty)("fetch", store, "team/basic", "--expect", "x").failed(2, "digest")
    cli.on(empty)("fetch", "ftp://host/x", "one").failed(9, "URL")
    cli.on(empty)("fetch", store, "team/basic", "--limit-rate", "fast").failed(2, "bytes per second")
    cli.on(repo)("publish", "nothing", store).failed(3, "nothing")
    cli.on(repo)("publish", "one", store, "--name", "a\nb").failed(2, "control")
    cli.on(repo)("publish", "one", store.parent / "nowhere").failed(9, "no store")
    cli("store", "init", store, "--hash", "sha256").failed(9, "sha512")
    assert tags(empty) == []


def test_a_limit_of_the_rate_is_accepted(cli: Cli, store: Path, empty: Path) -> None:
    cli.on(empty)("fetch", store, "team/basic", "--limit-rate", "50M").good()


def test_progress_is_lines_of_json(cli: Cli, store: Path, empty: Path) -> None:
    run = cli.on(empty)("fetch", store, "team/basic", "--progress", "json").good()
    events = [json.loads(line) for line in run.err.splitlines()]
    assert events[0]["event"] == "transfer-started"
    assert {"bytes-moved", "ref-written"} <= {event["event"] for event in events}


def test_an_object_store_is_a_store(cli: Cli, repo: Path, empty: Path, gofakes3: Server) -> None:  # noqa: F811
    url, endpoint = gofakes3.url("cli"), ("--endpoint", gofakes3.endpoint)
    cli.on(empty)("fetch", url, "basic", *endpoint).failed(9, "no store")
    cli("store", "init", url, *endpoint).good()
    cli.on(repo)("publish", "basic", url, *endpoint).good()
    cli.on(empty)("fetch", url, "basic", *endpoint).good()
    assert tags(empty) == ["basic"]
    assert cli("store", "fsck", url, *endpoint, "--json").good().json["ok"]
    cli("store", "gc", url, *endpoint).good()


FAKE_SSH = """#!/bin/sh
# What sshd does: the last argument is for a shell.
for last in "$@"; do :; done
exec sh -c "$(echo "$last" | sed 's|^composefs-async|{python} -m composefs_async|')"
"""


def test_images_are_copied_to_and_from_other_machines(cli: Cli, repo: Path, empty: Path, tmp_path: Path) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text(FAKE_SSH.format(python=sys.executable))
    ssh.chmod(0o755)
    run = cli.on(repo)("copy", "basic", "--to", f"ssh://host{empty}", "--ssh", ssh, "--json").good().json
    assert (run["tag"], run["objects_present"]) == ("basic", 0)
    assert tags(empty) == ["basic"]
    cli.on(empty)("fetch", f"ssh://host{repo}", "one", "--ssh", ssh).good()
    assert tags(empty) == ["basic", "one"]
    cli.on(repo)("copy", "artifact", "--to", empty, "--tag", "a").good()
    assert tags(empty) == ["a", "basic", "one"]
    cli.on(empty)("fsck").good()
    cli.on(empty)("fetch", "ssh://host", "one").failed(9, "ssh://")
    cli.on(repo)("copy", "one", "--to", f"ssh://host{empty}", "--link").failed(2, "--link")


def test_a_list_of_images_is_converted_and_its_state_told(cli: Cli, store: Path, tmp_path: Path) -> None:
    layouts = Path(__file__).parent.parent / "vectors/layouts"
    wanted = tmp_path / "list"
    wanted.write_text(
        f"# images\noci:{layouts}/basic\n\noci:{layouts}/one  # twice\noci:{layouts}/one\noci:/nowhere:x\n"
    )
    options = ("--store", store, "--platform", "linux/amd64")
    run = cli("fleet", "convert", wanted, *options, "--engine", "threads:2", "--json")
    assert run.code == 1
    assert [image["error"] is None for image in sorted(run.json, key=lambda image: image["reference"])] == [
        *(False, True, True)
    ]
    assert f"2 of 3 images{chr(10)}" in cli("fleet", "status", wanted, "--store", store).good().text
    again = cli("fleet", "convert", wanted, *options, "--shard", "0/1", "--json").json
    assert sum(image["layers_converted"] for image in again) == 0
    cli("fleet", "convert", wanted, *options, "--engine", "ray").failed(2, "threads")
    cli("fleet", "convert", wanted, *options, "--shard", "3/3").failed(2, "shard")


def test_a_damaged_repository_is_mended_from_a_store(cli: Cli, store: Path, empty: Path) -> None:
    cli.on(empty)("fetch", store, "team/basic", "--tag", "basic").good()
    objects = sorted(path for path in (empty / "objects").rglob("*") if path.is_file())
    damaged, lost = objects[0], objects[5]
    right = {path: path.read_bytes() for path in (damaged, lost)}
    damaged.chmod(0o644)
    damaged.write_bytes(b"damaged")
    lost.unlink()
    assert cli.on(empty)("fsck").code == 1
    cli.on(empty)("fsck", "--repair", f"file://{store}").good()
    assert {path: path.read_bytes() for path in right} == right
    cli.on(empty)("fsck").good()
    cli.on(empty)("fsck", "--repair", f"file://{store}/nowhere").failed(2, "no store")
