"""``oci layer``, ``ls-layer``, ``import-layer``, ``cat``."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from composefs_async._zstd import zstd

Cli = Callable[..., Any]
Golden = Callable[[str], tuple[Path, Any]]

VECTORS = Path(__file__).parents[2] / "vectors"
PACKED = VECTORS / "tar/one-3a411e.tar.gz"
TAR = gzip.decompress(PACKED.read_bytes())
DIFF_ID = f"sha256:{hashlib.sha256(TAR).hexdigest()}"
BASIC = "sha256:a5fc8bdfb062acb4db9acd7c48efa100939de4dafabd77b729bd48fd3b4de43e"

LINES = """\
/usr 0 40755 1 0 0 0 1700000000.0 - - -
/usr/z 100000 100644 1 0 0 0 1700000000.0 {path} - {digest}
"""


@pytest.mark.parametrize("flavour", ["g4-sha512-v1", "g4-sha256-v2", "g3-sha512"])
def test_layer_prints_the_json_of_cfsctl(cli: Cli, golden: Golden, flavour: str) -> None:
    path, facts = golden(flavour)
    known = {name: layer["json"] for name, layer in facts["layers"].items() if layer["json"]}
    assert known
    for name, expected in known.items():
        result = cli("--repo", path, "oci", "layer", name, "--json")
        assert (result.code, result.json, [*result.json]) == (0, expected, [*expected])


def test_layer_prints_the_tar_bit_for_bit(cli: Cli, golden: Golden) -> None:
    path, facts = golden("g4-sha512-v1")
    for name in facts["layers"]:
        result = cli("--repo", path, "oci", "layer", name)
        assert (result.code, f"sha256:{hashlib.sha256(result.raw).hexdigest()}") == (0, name)
        assert cli("--repo", path, "cat", f"oci-layer-{name}").raw == result.raw


def test_a_tar_whose_end_was_lost_is_printed_and_reported(cli: Cli, golden: Golden) -> None:
    path, facts = golden("g3-sha512")
    short = {name: layer["tar sha256"] for name, layer in facts["layers"].items() if layer["json"]}
    short = {name: found for name, found in short.items() if name != f"sha256:{found}"}
    assert short
    for name, found in short.items():
        result = cli("--repo", path, "oci", "layer", name)
        assert (result.code, hashlib.sha256(result.raw).hexdigest()) == (4, found)
        assert result.error == (f"composefs-async: layer {name}: expected digest {name}, found sha256:{found}\n")


def test_members_are_listed_as_cfsctl_lists_them(cli: Cli, golden: Golden) -> None:
    path, _ = golden("g4-sha512-v1")
    digest = (
        "7b8de9a72adc926e6617fe6778cae7b92f0a8fc43b3e7f48feed62a338c8e937"
        "5c41f6e3dfa1955d43680e586f782af4bb61cbf0f27047e900453e321c4871e8"
    )
    diff_id = "sha256:1e048601af6d61314f38b3b39a650fcaf8650b29e1e5eaafa7251b87b3b90fcd"
    expected = LINES.format(path=f"{digest[:2]}/{digest[2:]}", digest=digest)
    assert cli("--repo", path, "oci", "ls-layer", diff_id).output == expected
    assert cli("--repo", path, "oci", "layer", "--dumpfile", diff_id).output == expected
    assert cli("--repo", path, "oci", "ls-layer", "--json", diff_id).json[1] == {
        "path": "/usr/z",
        "type": "file",
        "mode": "0644",
        "uid": 0,
        "gid": 0,
        "size": 100000,
        "mtime_ns": 1700000000 * 10**9,
        "link": None,
        "object": digest,
    }


@pytest.mark.parametrize("packed", [TAR, PACKED.read_bytes(), zstd.compress(TAR)], ids=["plain", "gzip", "zstd"])
def test_a_layer_comes_in_from_standard_input_however_it_is_packed(cli: Cli, empty: Path, packed: bytes) -> None:
    result = cli("--repo", empty, "oci", "import-layer", DIFF_ID, "mine", stdin=packed)
    assert (result.code, result.output[:7], len(result.output)) == (0, "sha512:", 136)
    assert cli("--repo", empty, "oci", "layer", DIFF_ID).raw == TAR
    assert cli("--repo", empty, "cat", "refs/mine").raw == TAR
    again = cli("--repo", empty, "oci", "import-layer", DIFF_ID, "--json", "--progress=none")
    assert (again.json["present"], again.json["verity"], again.error) == (True, result.output.strip()[7:], "")


def test_another_layer_than_promised_is_not_published(cli: Cli, empty: Path) -> None:
    result = cli("--repo", empty, "oci", "import-layer", BASIC, "mine", stdin=TAR)
    assert (result.code, result.output) == (4, "")
    assert result.error.splitlines()[-1].endswith(f"expected digest {BASIC}, found {DIFF_ID}")
    assert cli("--repo", empty, "oci", "layer", BASIC).code == 3
    assert not (empty / "streams/refs").exists()


def test_what_is_no_tar_is_malformed(cli: Cli, empty: Path) -> None:
    content = b"no tar" * 1000
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    result = cli("--repo", empty, "oci", "import-layer", digest, "--progress=none", stdin=content)
    assert (result.code, result.output, result.error.count("\n")) == (5, "", 1)


def test_a_bomb_is_refused_by_its_limit(cli: Cli, empty: Path) -> None:
    result = cli("--repo", empty, "oci", "import-layer", DIFF_ID, "--max-layer-size=1000", stdin=PACKED.read_bytes())
    assert (result.code, result.output) == (5, "")


def test_progress_as_json_is_a_line_for_each_event(cli: Cli, empty: Path) -> None:
    result = cli("--repo", empty, "oci", "import-layer", DIFF_ID, "--progress=json", stdin=TAR)
    events = [json.loads(line) for line in result.error.splitlines()]
    assert [events[0]["event"], events[-1]["event"]] == ["layer-started", "layer-done"]
    assert result.output.startswith("sha512:")


def test_a_terminal_gets_no_tar(cli: Cli, pulled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    result = cli("--repo", pulled, "oci", "layer", BASIC)
    assert (result.code, result.raw) == (2, b"")
    assert result.error.startswith("composefs-async: a tar is not for a terminal")
