"""``demo`` and ``doctor``."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

from composefs_async.repository import Repository


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


def test_demo_imports_verifies_and_cleans_up(cli: Any, temporary: Path) -> None:
    result = cli("demo")
    assert (result.code, result.err) == (0, "")
    files = re.search(r"3 layers \(gzip, gzip, zstd\), ([0-9]+) files", result.text)
    assert files is not None
    assert int(files[1]) >= 200
    assert "the same as the original" in result.text
    assert "3 layers equal their diff_ids bit for bit" in result.text
    assert "3 layers present, nothing read, nothing written" in result.text
    assert list(temporary.iterdir()) == []


def test_demo_leaves_what_it_made_where_it_is_told_to(cli: Any, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    assert cli("demo", "--keep", kept).code == 0
    listing = cli("--repo", kept / "repository", "oci", "images", "--json").json
    assert [image["name"] for image in listing["images"]] == ["demo"]
    assert (kept / "image/index.json").exists()
    assert cli("demo", "--keep", kept).err == f"composefs-async: {kept}: File exists\n"


def test_doctor_tells_what_it_found(cli: Any, tmp_path: Path) -> None:
    result = cli("doctor", tmp_path)
    assert (result.code, result.err) == (0, "")
    assert result.text.startswith(f"{tmp_path}")
    for name in ("O_TMPFILE", "fs-verity", "reflink", "EROFS", "overlayfs", "overlay verity"):
        assert re.search(rf"^  (yes|no |\?  ) +{name} +\w", result.text, re.MULTILINE)
    assert os.listdir(tmp_path) == []


def test_doctor_gives_the_same_as_json(cli: Any, tmp_path: Path) -> None:
    found = cli("doctor", tmp_path, "--json").json
    status = os.statvfs(tmp_path)
    assert found["filesystem"]["read_only"] == bool(status.f_flag & os.ST_RDONLY)
    assert found["native"]["backend"] in ("native", "python")
    assert found["versions"]["python"].startswith("3.")
    assert {"anyio", "uvloop", "zlib-ng", "libzstd"} <= found["versions"].keys()


def test_doctor_looks_above_a_repository_that_is_not_there_yet(cli: Any, tmp_path: Path) -> None:
    result = cli("--repo", tmp_path / "not/yet", "doctor")
    assert (result.code, result.text.splitlines()[0][: len(str(tmp_path))]) == (0, str(tmp_path))


def test_doctor_wants_a_directory(cli: Any, tmp_path: Path) -> None:
    assert cli("doctor", tmp_path / "missing").code == 2


def test_doctor_names_linked_directories(cli: Any, tmp_path: Path) -> None:
    path = tmp_path / "repo"
    with Repository.init(path, insecure=True) as repo:
        repo.write_stream(repo.create_stream(1), "stream", "tag")
    shard = f"objects/{min(os.listdir(path / 'objects'))}"
    for number, name in enumerate([shard, "streams/refs", "streams"]):
        (path / name).rename(tmp_path / f"elsewhere{number}")
        (path / name).symlink_to(tmp_path / f"elsewhere{number}")
    links = json.loads(cli("doctor", "--json", path).text)["links"]
    found = {each["path"]: (each["followed"], each["owner"]) for each in links}
    assert found == {shard: (False, os.getuid()), "streams": (True, os.getuid()), "streams/refs": (True, os.getuid())}
    assert f"link streams is a link to {tmp_path}/elsewhere2" in cli("doctor", path).text
