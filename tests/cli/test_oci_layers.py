"""``oci layer``, ``ls-layer``, ``import-layer``, ``cat``."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from composefs_async._zstd import zstd

Golden = Callable[[str], tuple[Path, Any]]

VECTORS = Path(__file__).parent.parent / "vectors"
PACKED = VECTORS / "tar/one-3a411e.tar.gz"
TAR = gzip.decompress(PACKED.read_bytes())
DIFF_ID = f"sha256:{hashlib.sha256(TAR).hexdigest()}"
OTHER = "sha256:a5fc8bdfb062acb4db9acd7c48efa100939de4dafabd77b729bd48fd3b4de43e"
BASIC_LAYER = "sha256:58cc8208b729c9aa23e4ffc045b6eb3176d5b01c5fb2b8fe1877cbf311c5a495"
BASIC_PACKED = VECTORS / "layouts/basic/blobs/sha256/373391aedf9d65ebb4c5c628859ad2d728a1158c3712d168a2ead75e8ee6423c"

LINES = """\
/usr 0 40755 1 0 0 0 1700000000.0 - - -
/usr/z 100000 100644 1 0 0 0 1700000000.0 {path} - {digest}
"""


@pytest.mark.parametrize("flavour", ["g4-sha512-v1", "g4-sha256-v2", "g3-sha512"])
def test_layer_prints_the_json_of_cfsctl(cli: Any, golden: Golden, flavour: str) -> None:
    path, facts = golden(flavour)
    known = {name: layer["json"] for name, layer in facts["layers"].items() if layer["json"]}
    assert known
    for name, expected in known.items():
        result = cli("--repo", path, "oci", "layer", name, "--json")
        assert (result.code, result.json, [*result.json]) == (0, expected, [*expected])


def test_layer_prints_the_tar_bit_for_bit(cli: Any, golden: Golden) -> None:
    path, facts = golden("g4-sha512-v1")
    for name in facts["layers"]:
        result = cli("--repo", path, "oci", "layer", name)
        assert (result.code, f"sha256:{hashlib.sha256(result.out).hexdigest()}") == (0, name)
        assert cli("--repo", path, "cat", f"oci-layer-{name}").out == result.out


def test_a_tar_whose_end_was_lost_is_printed_and_reported(cli: Any, golden: Golden) -> None:
    path, facts = golden("g3-sha512")
    short = {name: layer["tar sha256"] for name, layer in facts["layers"].items() if layer["json"]}
    short = {name: found for name, found in short.items() if name != f"sha256:{found}"}
    assert short
    for name, found in short.items():
        result = cli("--repo", path, "oci", "layer", name)
        assert (result.code, hashlib.sha256(result.out).hexdigest()) == (4, found)
        assert result.err == (f"composefs-async: layer {name}: expected digest {name}, found sha256:{found}\n")


def test_members_are_listed_as_cfsctl_lists_them(cli: Any, golden: Golden) -> None:
    path, _ = golden("g4-sha512-v1")
    digest = (
        "7b8de9a72adc926e6617fe6778cae7b92f0a8fc43b3e7f48feed62a338c8e937"
        "5c41f6e3dfa1955d43680e586f782af4bb61cbf0f27047e900453e321c4871e8"
    )
    diff_id = "sha256:1e048601af6d61314f38b3b39a650fcaf8650b29e1e5eaafa7251b87b3b90fcd"
    expected = LINES.format(path=f"{digest[:2]}/{digest[2:]}", digest=digest)
    assert cli("--repo", path, "oci", "ls-layer", diff_id).text == expected
    assert cli("--repo", path, "oci", "layer", "--dumpfile", diff_id).text == expected
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
def test_a_layer_comes_in_from_standard_input_however_it_is_packed(cli: Any, empty: Path, packed: bytes) -> None:
    result = cli("--repo", empty, "oci", "import-layer", DIFF_ID, "mine", stdin=packed)
    assert (result.code, result.text[:7], len(result.text)) == (0, "sha512:", 136)
    assert cli("--repo", empty, "oci", "layer", DIFF_ID).out == TAR
    assert cli("--repo", empty, "cat", "refs/mine").out == TAR
    again = cli("--repo", empty, "oci", "import-layer", DIFF_ID, "--json", "--progress=none")
    assert (again.json["present"], again.json["verity"], again.err) == (True, result.text.strip()[7:], "")


def test_another_layer_than_promised_is_not_published(cli: Any, empty: Path) -> None:
    result = cli("--repo", empty, "oci", "import-layer", OTHER, "mine", stdin=TAR)
    assert (result.code, result.text) == (4, "")
    assert result.err.splitlines()[-1].endswith(f"expected digest {OTHER}, found {DIFF_ID}")
    assert cli("--repo", empty, "oci", "layer", OTHER).code == 3
    assert not (empty / "streams/refs").exists()


def test_what_is_no_tar_is_malformed(cli: Any, empty: Path) -> None:
    content = b"no tar" * 1000
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    result = cli("--repo", empty, "oci", "import-layer", digest, "--progress=none", stdin=content)
    assert (result.code, result.text, result.err.count("\n")) == (5, "", 1)


def test_a_bomb_is_refused_by_its_limit(cli: Any, empty: Path) -> None:
    result = cli("--repo", empty, "oci", "import-layer", DIFF_ID, "--max-layer-size=1000", stdin=PACKED.read_bytes())
    assert (result.code, result.text) == (5, "")


def test_progress_as_json_is_a_line_for_each_event(cli: Any, empty: Path) -> None:
    result = cli("--repo", empty, "oci", "import-layer", DIFF_ID, "--progress=json", stdin=TAR)
    events = [json.loads(line) for line in result.err.splitlines()]
    assert [events[0]["event"], events[-1]["event"]] == ["layer-started", "layer-done"]
    assert result.text.startswith("sha512:")


# -- as a program, through pipes, files and terminals ------------------------------------------


@pytest.mark.parametrize("case", ["basic", "one"])
def test_layer_is_bit_exact_through_a_pipe_and_a_file(
    case: str, repo: Path, tmp_path: Path, cli: Any, program: Callable[..., Any]
) -> None:
    config = cli.on(repo)("oci", "inspect", case, "--config").json
    for diff_id in config["rootfs"]["diff_ids"]:
        assert f"sha256:{hashlib.sha256(program('--repo', repo, 'oci', 'layer', diff_id).out).hexdigest()}" == diff_id
        with (tmp_path / "tar").open("wb") as file:
            program("--repo", repo, "oci", "layer", diff_id, stdout=file).good()
        assert f"sha256:{hashlib.sha256((tmp_path / 'tar').read_bytes()).hexdigest()}" == diff_id


@pytest.mark.parametrize(
    ("arguments", "refused"), [([], True), (["--json"], False), (["--dumpfile"], False)], ids=["tar", "json", "dump"]
)
def test_only_the_tar_is_not_for_a_terminal(
    arguments: list[str], refused: bool, repo: Path, program: Callable[..., Any]
) -> None:
    leader, follower = pty.openpty()
    try:
        found = program("--repo", repo, "oci", "layer", BASIC_LAYER, *arguments, stdout=follower)
        if refused:
            found.failed(2, "a tar is not for a terminal", "--json", "--dumpfile")
        else:
            assert (found.code, found.err) == (0, "")
            assert os.read(leader, 1) in (b"{", b"/")
    finally:
        os.close(leader)
        os.close(follower)


def unpacked(repo: Path, program: Callable[..., Any]) -> bytes:
    content: bytes = program("--repo", repo, "oci", "layer", BASIC_LAYER).good().out
    return content


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_layer_comes_in_through_a_pipe(loop: str, repo: Path, empty: Path, program: Callable[..., Any]) -> None:
    pytest.importorskip(loop)
    for content in (unpacked(repo, program), BASIC_PACKED.read_bytes()):
        target = Path(shutil.copytree(empty, empty.parent / f"copy-{len(content)}"))
        program("--loop", loop, "--repo", target, "oci", "import-layer", BASIC_LAYER, "mine", input=content).good()
        assert program("--repo", target, "cat", "refs/mine").good().out == unpacked(repo, program)


def test_layer_comes_in_from_a_file(empty: Path, program: Callable[..., Any]) -> None:
    with BASIC_PACKED.open("rb") as file:
        found = program("--repo", empty, "oci", "import-layer", "--json", BASIC_LAYER, stdin=file).good()
    assert (found.json["diff_id"], found.json["present"], found.json["stats"]["bytes_read"]) == (
        BASIC_LAYER,
        False,
        BASIC_PACKED.stat().st_size,
    )
    assert set(found.json) == {"diff_id", "verity", "present", "stats"}


def test_file_is_read_from_where_it_stands(tmp_path: Path, empty: Path, program: Callable[..., Any]) -> None:
    (tmp_path / "file").write_bytes(b"header" + BASIC_PACKED.read_bytes())
    with (tmp_path / "file").open("rb", buffering=0) as file:
        file.seek(6)
        program("--repo", empty, "oci", "import-layer", BASIC_LAYER, stdin=file).good()
        assert file.read() == b""
    stored = program("--repo", empty, "oci", "layer", BASIC_LAYER).good().out
    assert f"sha256:{hashlib.sha256(stored).hexdigest()}" == BASIC_LAYER


@pytest.mark.parametrize("size", [0, 100, 50_000])
def test_layer_that_ends_early_is_refused(size: int, repo: Path, empty: Path, program: Callable[..., Any]) -> None:
    content = unpacked(repo, program)[:size]
    found = program("--repo", empty, "oci", "import-layer", BASIC_LAYER, input=content)
    assert (found.code in (4, 5), found.out, found.err.count("\n")) == (True, b"", 1), found.err
    program("--repo", empty, "oci", "layer", BASIC_LAYER).failed(3, BASIC_LAYER)


def test_input_that_is_a_terminal_or_closed_is_refused(empty: Path, program: Callable[..., Any]) -> None:
    leader, follower = pty.openpty()
    try:
        program("--repo", empty, "oci", "import-layer", BASIC_LAYER, stdin=follower).failed(2, "a terminal")
    finally:
        os.close(leader)
        os.close(follower)
    script = f'exec "{sys.executable}" -m composefs_async --repo "{empty}" oci import-layer {BASIC_LAYER} <&-'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "closed" in done.stderr


def test_what_is_no_tar_is_told_as_that(cli: Any, empty: Path) -> None:
    told = cli.on(empty)("oci", "import-layer", "sha256:" + "0" * 64, stdin=b"x" * 1024)
    told.failed(5, "not a tar archive", "tar offset 0")


# -- layers by their number --------------------------------------------------------------------


def test_a_layer_goes_by_its_number_in_an_image(cli: Any, repo: Path) -> None:
    on = cli.on(repo)
    layers = [each["name"] for each in on("oci", "layers", "basic", "--json").good().json["layers"]]
    assert len(layers) > 1
    on("oci", "tag", "basic", "app:1").good()
    for number, name in enumerate(layers, 1):
        assert on("oci", "layer", f"basic:{number}").good().out == on("oci", "layer", name).good().out
        assert on("oci", "ls-layer", f"app:1:{number}").good().out == on("oci", "ls-layer", name).good().out
        assert on("oci", "layer", f"basic:{number}", "--json").good().json["diffId"] == name
    on("oci", "ls-layer", f"basic:{len(layers) + 1}").failed(3, f"layer not found: basic:{len(layers) + 1}", "has")
    on("oci", "ls-layer", "nothing:1").failed(3, "nothing")
    for wrong in ("basic", "basic:0", "basic:01", "basic:x", ":1", "basic:1234567", "basic:\u0661"):
        on("oci", "ls-layer", wrong).failed(2, "NAME:NUMBER")


def test_a_layer_that_is_twice_in_an_image_is_counted_twice(cli: Any, empty: Path, tmp_path: Path) -> None:
    (tmp_path / "layer.tar").write_bytes(TAR)
    layer = ("--layer", tmp_path / "layer.tar")
    cli.on(empty)("oci", "build", "twice", *layer, *layer, "--progress=none").good()
    found = cli.on(empty)("oci", "layers", "twice", "--json").good().json["layers"]
    assert [each["name"] for each in found] == [DIFF_ID, DIFF_ID]
    assert cli.on(empty)("oci", "layer", "twice:2").good().out == TAR
    summary = cli.on(empty)("oci", "inspect", "twice", "--summary").good().text
    assert summary.count(DIFF_ID) == 2
    assert "layers    2, " in summary
