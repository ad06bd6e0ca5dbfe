"""``doctor --storage``: a whole store of containers-storage is checked, and left as it is."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from composefs_async.oci.sources.storage.checking import check_storage

from ..oci.sources_golden import unpack


@pytest.fixture
def stores(tmp_path: Path) -> Path:
    if os.geteuid() != 0:
        pytest.skip("stores have whiteouts, which are devices, and files of other users: root is needed")
    return unpack(tmp_path, "stores")


def listing(path: Path) -> dict[str, Any]:
    return {
        str(each): (each.lstat().st_mode, each.lstat().st_mtime_ns, each.lstat().st_size) for each in path.rglob("*")
    }


def test_golden_stores_are_whole_and_stay_as_they_are(cli: Any, stores: Path) -> None:
    before = listing(stores)
    for name in ("overlay-store", "vfs-store", "rootless-store", "masked-store", "composefs-store"):
        result = cli("doctor", "--storage", stores / name, "--json")
        assert (name, result.code, result.json["damaged"]) == (name, 0, 0)
        assert len(result.json["layers"]) >= 3
        assert len(result.json["images"]) >= 1
        assert [each["problem"] for each in result.json["images"]] == [None] * len(result.json["images"])
        assert all(each["diff_id"] for each in result.json["layers"])
    assert listing(stores) == before


@pytest.mark.parametrize(
    ("name", "why"), [("upper-store", "is in no store that the configuration names"), ("odd-store", "has sparse files")]
)
def test_what_cannot_be_checked_is_not_damaged(cli: Any, stores: Path, name: str, why: str) -> None:
    result = cli("doctor", "--storage", stores / name, "--json")
    assert (result.code, result.json["damaged"], result.json["unchecked"]) == (2, 0, 1)
    (told,) = [each["unchecked"] for each in result.json["layers"] if each["unchecked"]]
    assert why in told


def test_what_cannot_be_read_is_not_damaged(cli: Any, stores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("composefs_async.oci.sources.storage.files.open_in_root", refuse)
    found = check_storage(str(stores / "overlay-store"))
    assert [each.problem for each in found.layers] == [None] * 3
    assert any(each.unchecked and "Permission denied" in each.unchecked for each in found.layers)
    assert all(each.good for each in found.images)


@pytest.mark.parametrize("damage", ["changed", "removed"])
def test_a_damaged_file_is_named(cli: Any, stores: Path, damage: str) -> None:
    files = [
        each for each in stores.glob("overlay-store/overlay/*/diff/**/*") if each.is_file() and not each.is_symlink()
    ]
    victim = max(files, key=lambda each: each.stat().st_size)
    if damage == "removed":
        victim.unlink()
    else:
        with victim.open("r+b") as file:
            first = file.read(1)
            file.seek(0)
            file.write(bytes([first[0] ^ 1]))
    result = cli("doctor", "--storage", stores / "overlay-store")
    assert result.code == 4
    assert victim.name in result.text
    assert "layers, 1 damaged" in result.text
    lines = [line for line in result.text.splitlines() if line.startswith("image ")]
    assert len(lines) >= 1
    assert all("localhost/" in line and " is damaged" in line for line in lines)


def documents(store: Path) -> list[Path]:
    """Manifests and configs of all images."""
    return sorted(path for path in store.glob("overlay-images/*/*") if path.is_file())


def test_documents_of_images_are_compared_with_their_digests(cli: Any, stores: Path) -> None:
    store = stores / "overlay-store"
    for path in documents(store):
        content = path.read_bytes()
        for changed, words in ((content + b" ", "expected digest"), (None, "is missing")):
            if changed is None:
                path.unlink()
            else:
                path.write_bytes(changed)
            result = cli("doctor", "--storage", store, "--json")
            problems = [each["problem"] for each in result.json["images"] if each["problem"]]
            assert (result.code, result.json["damaged"], len(problems) >= 1) == (4, 0, True), path
            assert all(words in problem for problem in problems), problems
        path.write_bytes(content)
    assert cli("doctor", "--storage", store).code == 0


def test_an_image_without_one_of_its_layers_is_told(cli: Any, stores: Path) -> None:
    store = stores / "overlay-store"
    records = store / "overlay-layers/layers.json"
    layers = json.loads(records.read_bytes())
    records.write_text(json.dumps([each for each in layers if each.get("parent")]))
    result = cli("doctor", "--storage", store)
    assert result.code == 2
    told = [line for line in result.text.splitlines() if line.startswith("image ")]
    assert len(told) >= 1
    assert all("not checked: its layer" in line and "is in no store" in line for line in told)


def test_a_store_that_is_not_there_is_said(cli: Any, tmp_path: Path) -> None:
    assert cli("doctor", "--storage", tmp_path / "none").code == 3
