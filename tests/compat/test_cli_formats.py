"""What our command line and cfsctl print of the same repository is the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from composefs_async.digest import Algorithm
from composefs_async.oci import Platform, pull
from composefs_async.repository import Repository

LAYOUTS = Path(__file__).parent.parent / "vectors" / "layouts"
CASES = ["basic", "same_layer", "plain_zstd", "ustar", "tail:padded", "artifact"]
ARCHIVES = [case for case in CASES if case != "artifact"]

algorithms = pytest.mark.parametrize("algorithm", Algorithm, ids=lambda algorithm: algorithm.value)


def ours(*arguments: object) -> bytes:
    command = [sys.executable, "-m", "composefs_async", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Algorithm], Path]:
    """A repository that we have filled, one for all tests that only read."""
    known: dict[Algorithm, Path] = {}

    def make(algorithm: Algorithm) -> Path:
        if algorithm not in known:
            known[algorithm] = path = tmp_path_factory.mktemp("made") / "repo"
            with Repository.init(path, algorithm=algorithm, insecure=True) as repo:
                for case in CASES:
                    work = partial(
                        pull, repo, f"oci:{LAYOUTS}/{case}", tag=f"x/{case}", platform=Platform("linux", "amd64")
                    )
                    anyio.run(work)
        return known[algorithm]

    return make


@pytest.fixture
def both(cfsctl: Callable[..., Any], made: Callable[[Algorithm], Path]) -> Callable[..., tuple[bytes, bytes]]:
    """What both print for the same arguments."""

    def call(algorithm: Algorithm, *arguments: str) -> tuple[bytes, bytes]:
        path = made(algorithm)
        theirs: bytes = cfsctl(path)(*arguments)
        return ours("--repo", path, *arguments), theirs

    return call


def diff_ids(config: str) -> list[str]:
    found: list[str] = json.loads(config)["rootfs"]["diff_ids"]
    return sorted(set(found))


@algorithms
def test_images_as_json(algorithm: Algorithm, both: Callable[..., tuple[bytes, bytes]]) -> None:
    mine, theirs = map(json.loads, both(algorithm, "oci", "images", "--json"))
    assert [image["name"] for image in mine["images"]] == sorted(f"x/{case}" for case in CASES)
    assert mine == {"images": sorted(theirs["images"], key=lambda image: str(image["name"]))}
    assert [list(image) for image in mine["images"]] == [list(theirs["images"][0])] * len(CASES)


@algorithms
def test_images_as_table(algorithm: Algorithm, both: Callable[..., tuple[bytes, bytes]]) -> None:
    mine, theirs = (text.decode().splitlines() for text in both(algorithm, "oci", "images"))
    assert [line for line in mine if "x/" in line] == sorted(line for line in theirs if "x/" in line)
    assert mine[:3] == theirs[:3]
    assert mine[-1] == theirs[-1]


@algorithms
@pytest.mark.parametrize("case", CASES)
def test_inspect(case: str, algorithm: Algorithm, both: Callable[..., tuple[bytes, bytes]]) -> None:
    mine, theirs = map(json.loads, both(algorithm, "oci", "inspect", f"x/{case}"))
    assert mine == theirs
    assert list(mine) == list(theirs)


@algorithms
@pytest.mark.parametrize("option", ["--manifest", "--config"])
def test_documents(option: str, algorithm: Algorithm, both: Callable[..., tuple[bytes, bytes]]) -> None:
    for case in CASES:
        mine, theirs = both(algorithm, "oci", "inspect", option, f"x/{case}")
        assert mine.rstrip(b"\n") == theirs.rstrip(b"\n")


@algorithms
@pytest.mark.parametrize("case", ARCHIVES)
def test_layers(case: str, algorithm: Algorithm, both: Callable[..., tuple[bytes, bytes]]) -> None:
    (config, _) = both(algorithm, "oci", "inspect", "--config", f"x/{case}")
    for diff_id in diff_ids(config.decode()):
        mine, theirs = both(algorithm, "oci", "layer", diff_id)
        assert mine == theirs
        mine, theirs = both(algorithm, "oci", "layer", "--dumpfile", diff_id)
        assert mine == theirs
        mine, theirs = both(algorithm, "oci", "layer", "--json", diff_id)
        assert mine == theirs
        mine, theirs = both(algorithm, "cat", f"oci-layer-{diff_id}")
        assert mine == theirs


@algorithms
def test_stream_behind_a_reference(algorithm: Algorithm, both: Callable[..., tuple[bytes, bytes]]) -> None:
    mine, theirs = both(algorithm, "cat", "refs/oci/x%2Fbasic")
    assert mine == theirs


INIT: list[list[str]] = [
    ["--insecure"],
    ["--insecure", "--algorithm", "fsverity-sha256-12"],
    ["--insecure", "--erofs-version", "2"],
]


@pytest.mark.parametrize("options", INIT, ids=" ".join)
def test_init_says_and_makes_the_same(options: list[str], tool: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "theirs").mkdir()
    for _ in range(2):
        mine = subprocess.run(
            [sys.executable, "-m", "composefs_async", "init", *options, "repo"],
            cwd=tmp_path / "ours",
            capture_output=True,
            check=True,
        )
        theirs = subprocess.run(
            [tool("cfsctl"), "init", *options, "repo"], cwd=tmp_path / "theirs", capture_output=True, check=True
        )
        assert (mine.stdout, mine.stderr) == (theirs.stdout, theirs.stderr)
    meta = [(tmp_path / side / "repo" / "meta.json").read_bytes() for side in ("ours", "theirs")]
    assert meta[0] == meta[1]


def test_untag_and_tag_say_the_same(cfsctl: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "repo"
    with Repository.init(path, insecure=True) as repo:
        result = anyio.run(partial(pull, repo, f"oci:{LAYOUTS}/one", tag="one", platform=Platform("linux", "amd64")))
    program = cfsctl(path)
    digest = result.manifest_digest
    assert ours("--repo", path, "oci", "tag", digest, "a/b") == program("oci", "tag", digest, "a/b")
    assert ours("--repo", path, "oci", "untag", "a/b") == program("oci", "untag", "one")[:-4] + b"a/b\n"
