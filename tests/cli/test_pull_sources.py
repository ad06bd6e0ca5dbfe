"""``oci pull`` from paths, standard input and archives, and repairs from them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.oci.sources_golden import MADE, PULLED, unpack

from .conftest import Cli, Run

Program = Callable[..., Run]


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("golden"), "archives")


def test_archive_is_piped_in(golden: Path, empty: Path, program: Program) -> None:
    archive = (golden / "docker20-save.tar").read_bytes()
    done = program("--repo", empty, "oci", "pull", "-", "app:1", input=gzip.compress(archive)).good()
    assert f"manifest {MADE}  (made here: the source has none)\n" in done.text
    assert "tagged   app:1\n" in done.text


def test_image_of_several_is_chosen_on_standard_input(golden: Path, empty: Path, program: Program) -> None:
    with (golden / "docker20-save-two.tar").open("rb") as file:
        done = program(
            "--repo", empty, "oci", "pull", "--json", "docker-archive:-:localhost/golden:v1", "app", stdin=file
        ).good()
    assert (json.loads(done.out)["manifest"], json.loads(done.out)["manifest_made"]) == (MADE, True)


@pytest.mark.parametrize(
    ("path", "manifest"),
    [
        ("docker20-save.tar", MADE),
        ("docker20-save-two.tar:localhost/golden:v1", MADE),
        ("skopeo-oci.tar:golden", PULLED),
        ("golden-oci", PULLED),
        ("golden-oci:golden", PULLED),
        ("skopeo-dir", PULLED),
    ],
)
def test_what_is_at_a_path_is_told_by_its_content(
    golden: Path, empty: Path, cli: Cli, path: str, manifest: str
) -> None:
    done: Any = cli.on(empty)("oci", "pull", "--json", golden / path, "app").good().json
    assert (done["manifest"], done["tagged"]) == (manifest, "app")


def test_standard_input_needs_a_name(empty: Path, program: Program) -> None:
    done = program("--repo", empty, "oci", "pull", "-", input=b"")
    assert (done.code, "needs a NAME" in done.err) == (2, True)


def test_other_input_is_refused(empty: Path, program: Program) -> None:
    done = program("--repo", empty, "oci", "pull", "-", "app", input=b"nonsense")
    assert (done.code, done.out, "it is no tar archive" in done.err) == (5, b"", True)


@pytest.mark.parametrize("path", ["none", "none:tag", "ftp:x"])
def test_what_is_no_image(empty: Path, cli: Cli, path: str) -> None:
    assert cli.on(empty)("oci", "pull", path, "app").code == 2


@pytest.mark.parametrize(
    "source", ["docker-archive:{}/docker20-save.tar", "docker-archive:{}/packed", "archive:{}/packed"]
)
def test_repair_takes_what_it_needs_from_an_archive(golden: Path, empty: Path, cli: Cli, source: str) -> None:
    (golden / "packed").write_bytes(gzip.compress((golden / "docker20-save.tar").read_bytes()))
    on = cli.on(empty)
    on("oci", "pull", golden / "docker20-save.tar", "app").good()
    victim = max((empty / "objects").glob("*/*"), key=lambda path: path.stat().st_size)
    content = victim.read_bytes()
    victim.unlink()
    assert on("fsck").code == 1
    on("fsck", "--repair", source.format(golden)).good()
    assert victim.read_bytes() == content
    on("fsck").good()
