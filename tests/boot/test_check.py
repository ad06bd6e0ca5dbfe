"""Whether a kernel image boots what is in a repository: each way in which it does not, and why."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import anyio
import pytest

from composefs_async import Algorithm, Repository
from composefs_async.boot import Against, check_boot, ensure_boot_image, format_karg
from composefs_async.boot.reading import object_reader
from composefs_async.oci import image_tree, pull
from composefs_async.oci.catalogue import open_image, untag
from composefs_async.repository import state_of

from .conftest import B1_FILES, layer_of, with_policy, write_layout
from .portable import kernel_image

FILES = dict(B1_FILES) | {
    name: content
    for name, content in with_policy({}, contexts="/.* any\n/usr/bin/.* bin").items()
    if isinstance(content, bytes)
}


@pytest.fixture
def repo(tmp_path: Path):  # type: ignore[no-untyped-def]
    with Repository.init(tmp_path / "repo", algorithm=Algorithm.SHA256, insecure=True) as found:
        anyio.run(partial(pull, found, write_layout(tmp_path / "layout", layer_of(FILES)), tag="demo"))
        ensure_boot_image(found, "demo")
        yield found


def boot_id(repo: Repository):  # type: ignore[no-untyped-def]
    found = open_image(repo, "demo").boot_image(1)
    assert found is not None
    return found


def uki(tmp_path: Path, command_line: str) -> Path:
    (tmp_path / "x.efi").write_bytes(kernel_image(command_line.encode()))
    return tmp_path / "x.efi"


def against(repo: Repository) -> Against:
    return Against("demo", partial(image_tree, repo, open_image(repo, "demo")), object_reader(state_of(repo)))


def test_a_kernel_image_that_boots(repo: Repository, tmp_path: Path) -> None:
    argument = format_karg(boot_id(repo), 1, insecure=True)
    found = check_boot(repo, uki(tmp_path, f"rw {argument}\0"), against(repo))
    assert (found.problems, found.notes, found.ok) == ((), (), True)
    assert found.mounted is not None
    assert found.mounted.id == boot_id(repo)


def test_entries_of_type_1_and_those_that_lead_to_kernel_images(repo: Repository, tmp_path: Path) -> None:
    argument = format_karg(boot_id(repo), 1, insecure=True)
    place = tmp_path / "boot/loader/entries"
    place.mkdir(parents=True)
    (place / "a.conf").write_text(f"title x\noptions quiet\noptions {argument}\n")
    (place / "b.conf").write_text("title x\nuki /EFI/x.efi\n")
    (tmp_path / "boot/EFI").mkdir()
    uki(tmp_path / "boot/EFI", argument)
    assert [check_boot(repo, place / name).ok for name in ("a.conf", "b.conf")] == [True, True]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("quiet", "no kernel argument names an image"),
        ("composefs=?" + "0" * 64, "the image " + "0" * 64 + " is not in the repository"),
        ("composefs=?" + "0" * 128, "whose algorithm is sha256, not sha512"),
        ("composefs=?ID composefs=abc", "3 characters are no digest"),
        ("composefs=ID", "it requires fs-verity, which this repository does not have"),
    ],
)
def test_arguments_that_do_not_boot(repo: Repository, tmp_path: Path, line: str, problem: str) -> None:
    found = check_boot(repo, uki(tmp_path, line.replace("ID", boot_id(repo).hex())))
    assert not found.ok
    assert [problem in each for each in found.problems] == [True]


def test_the_first_image_that_is_there_is_mounted(repo: Repository, tmp_path: Path) -> None:
    found = check_boot(repo, uki(tmp_path, f"composefs=?{'0' * 64} composefs=?{boot_id(repo).hex()}"))
    assert found.ok
    assert found.mounted is not None
    assert found.mounted.id == boot_id(repo)
    assert ["is not in the repository" in note for note in found.notes] == [True]


def test_an_image_that_lacks_objects(repo: Repository, tmp_path: Path) -> None:
    argument = format_karg(boot_id(repo), 1, insecure=True)
    missing = repo.objects_for_image(boot_id(repo).hex())[0]
    Path(repo.path, "objects", missing.path).unlink()
    found = check_boot(repo, uki(tmp_path, argument))
    assert [f"object {missing.hex()} is missing" in each for each in found.problems] == [True]


def test_an_image_that_is_damaged(repo: Repository, tmp_path: Path) -> None:
    image = Path(repo.path, "objects", boot_id(repo).path)
    image.chmod(0o644)
    content = bytearray(image.read_bytes())
    content[-1] ^= 1
    image.write_bytes(content)
    found = check_boot(repo, uki(tmp_path, format_karg(boot_id(repo), 1, insecure=True)))
    assert ["expected digest" in each for each in found.problems] == [True]


def test_an_image_that_the_next_gc_removes(repo: Repository, tmp_path: Path) -> None:
    argument = format_karg(boot_id(repo), 1, insecure=True)
    untag(repo, "demo")
    found = check_boot(repo, uki(tmp_path, argument))
    assert ["the next gc removes it" in each for each in found.problems] == [True]
    repo.add_reference("images", "kept", boot_id_of(argument))
    assert check_boot(repo, uki(tmp_path, argument)).ok


def boot_id_of(argument: str) -> str:
    return argument.rpartition(":")[2]


def test_another_tree_is_told_by_its_first_difference(repo: Repository, tmp_path: Path) -> None:
    layer = layer_of({**FILES, "usr/bin/sh": b"other"})
    anyio.run(partial(pull, repo, write_layout(tmp_path / "other", layer), tag="other"))
    ensure_boot_image(repo, "other")
    found = open_image(repo, "other").boot_image(1)
    assert found is not None
    result = check_boot(repo, uki(tmp_path, format_karg(found, 1, insecure=True)), against(repo))
    assert ["the first difference is at /usr/bin/sh" in each for each in result.problems] == [True]


def test_another_policy_is_told_by_the_line_that_decides(repo: Repository, tmp_path: Path) -> None:
    name = "etc/selinux/t/contexts/files/file_contexts"
    layer = layer_of({**FILES, name: b"/.* any\n/usr/bin/.* boo"})
    anyio.run(partial(pull, repo, write_layout(tmp_path / "other", layer), tag="other"))
    ensure_boot_image(repo, "other")
    found = open_image(repo, "other").boot_image(1)
    assert found is not None
    result = check_boot(repo, uki(tmp_path, format_karg(found, 1, insecure=True)), against(repo))
    assert result.explanation is not None
    first = result.explanation.first
    assert first is not None
    # The policy itself is met first.
    assert first.path == f"/{name}".encode()


@pytest.mark.parametrize("name", ["x.txt", "x.efi", "x.conf"])
def test_files_that_are_neither(repo: Repository, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff\xfe")
    found = check_boot(repo, tmp_path / name)
    assert (found.ok, len(found.problems), found.mounted) == (False, 1, None)
