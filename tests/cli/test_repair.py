"""``fsck --repair``."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from composefs_async.digest import ObjectId
from composefs_async.naming import layer_stream
from composefs_async.oci.catalogue import open_image
from composefs_async.repository import Repository

LAYOUTS = Path(__file__).parent.parent / "vectors" / "layouts"
SOURCES = [f"oci:{LAYOUTS}/{case}" for case in ("basic", "one", "artifact")]


def _objects(repo: Repository, layers: Iterable[str]) -> set[ObjectId]:
    found: set[ObjectId] = set()
    for layer in layers:
        with repo.open_stream(layer_stream(layer)) as reader:
            found.update(reader.object_refs)
    return found


@pytest.fixture
def victim(repo: Path) -> Path:
    """An object of a layer of ``basic`` alone, changed."""
    with Repository.open_path(repo) as repository:
        basic, one = (_objects(repository, open_image(repository, name).layers) for name in ("basic", "one"))
    path = repo / "objects" / min(basic - one).path
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    return path


def name(repo: Path, path: Path) -> str:
    return str(path.relative_to(repo))


def test_it_tells_what_was_done_and_which_image_is_whole_again(cli: Any, repo: Path, victim: Path) -> None:
    run = cli.on(repo)("fsck", "--repair", *SOURCES, "--progress", "none")
    lines = run.good().text.splitlines()
    assert lines[0] == "found: 1 error(s)"
    assert lines[1].startswith(f"  - fsck: object-digest-mismatch: {name(repo, victim)}: measured ")
    assert lines[2:5] == [
        "done:",
        f"  - {name(repo, victim)}: replaced from {SOURCES[0]}",
        "tag basic: is whole again",
    ]
    assert lines[5].startswith(f"put aside: {repo}/.composefs-async/quarantine/")
    assert lines[6:] == ["status: ok"]
    assert cli.on(repo)("fsck", "--progress", "none").code == 0


def test_what_is_left_is_told_and_makes_the_exit_code_1(cli: Any, repo: Path, victim: Path) -> None:
    run = cli.on(repo)("fsck", "--repair", "--progress", "none")
    assert run.code == 1
    lines = run.text.splitlines()
    assert lines[2:4] == ["tag basic: is still damaged", "status: 1 error(s) left"]
    assert name(repo, victim) in lines[4]
    hint = "repair it from a repository, an image directory or a directory of files that has the content"
    assert lines[5:] == [f"      {hint}"]


def test_what_can_be_done_is_told_once_for_all_that_is_alike(cli: Any, repo: Path, victim: Path) -> None:
    for at in "ab":
        (repo / "streams/refs" / at).symlink_to("../gone")
    lines = cli.on(repo)("fsck", "--repair", "--progress", "none").text.splitlines()
    assert "reference streams/a: is still damaged" in lines
    at = lines.index("status: 3 error(s) left")
    assert [line[:6] for line in lines[at + 1 :]] == ["  - fs", "      ", "  - fs", "  - fs", "      "]
    assert "'composefs-async refs prune --dangling'" in lines[-1]
    found = cli.on(repo)("fsck", "--repair", "--json", "--progress", "none").json["unrepaired"]
    assert [(each["path"], each["remedy"]) for each in found[1:]] == [
        (f"streams/refs/{at}", lines[-1].strip()) for at in "ab"
    ]


def test_a_dry_run_changes_nothing(cli: Any, repo: Path, victim: Path) -> None:
    before = victim.read_bytes()
    run = cli.on(repo)("fsck", "--repair", "-n", *SOURCES, "--progress", "plain").good()
    assert run.err == f"{name(repo, victim)}: would be replaced from {SOURCES[0]}\n"
    assert "would do:\n" in run.text
    assert "tag basic: would be whole again\n" in run.text
    assert victim.read_bytes() == before
    assert cli.on(repo)("fsck", "--progress", "none").code == 1


def test_the_json_form_has_everything(cli: Any, repo: Path, victim: Path) -> None:
    found = cli.on(repo)("fsck", "--repair", *SOURCES, "--json", "--progress", "none").good().json
    assert list(found) == [
        "ok",
        "dry_run",
        "actions",
        "unrepaired",
        "affected_refs",
        "recovered_refs",
        "problems",
        "quarantine",
        "before",
        "after",
    ]
    action = {"path": name(repo, victim), "action": "replaced", "source": SOURCES[0]}
    assert (found["ok"], found["actions"], found["unrepaired"]) == (True, [action], [])
    assert found["affected_refs"] == found["recovered_refs"] == ["streams/refs/oci/basic"]
    assert (found["before"]["ok"], found["after"]["ok"]) == (False, True)
    assert (repo / found["quarantine"] / name(repo, victim)).read_bytes().endswith(b"\xff")


def test_progress_is_shown_on_standard_error(cli: Any, repo: Path, victim: Path) -> None:
    run = cli.on(repo)("fsck", "--repair", *SOURCES, "--progress", "plain").good()
    assert f"{name(repo, victim)}: replaced from {SOURCES[0]}\n" in run.err


@pytest.mark.parametrize("kind", ["repository", "directory"])
def test_other_kinds_of_sources_are_told_by_what_they_are(cli: Any, repo: Path, tmp_path: Path, kind: str) -> None:
    source = Path(shutil.copytree(repo, tmp_path / "source", symlinks=True))
    victim = next(path for path in sorted((repo / "objects").rglob("*")) if path.is_file())
    victim.unlink()
    where = source if kind == "repository" else source / "objects"
    run = cli.on(repo)("fsck", "--repair", where, "--progress", "none").good()
    assert f"{name(repo, victim)}: restored from {where}\n" in run.text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["FROM"], "go with --repair"),
        (["--dry-run"], "go with --repair"),
        (["--repair", "--metadata-only"], "--repair checks everything"),
        (["--repair", "--continue"], "--repair checks everything"),
        (["--repair", "--limit", "1M"], "--repair checks everything"),
        (["--repair", "/nothing"], "/nothing: No such file or directory"),
        (["--repair", "oci:/nothing"], "/nothing: not an OCI image directory"),
    ],
)
def test_what_cannot_be_done_is_told_with_exit_code_2(cli: Any, repo: Path, arguments: list[str], text: str) -> None:
    assert text in cli.on(repo)("fsck", *arguments).failed(2).err
