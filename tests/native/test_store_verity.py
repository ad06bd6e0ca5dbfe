"""The branches of the batch store that need a kernel with fs-verity, or a poorer one, under a preloaded fake.

What a real kernel does is tested in a virtual machine; this here shows quickly that each branch is taken.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from composefs_async.digest import Algorithm
from composefs_async.fsverity import _python

from ..conftest import preloading

SOURCES = Path(__file__).parents[2] / "composefs_async" / "_native"  # an installed package has none
STORED, PRESENT, REPLACED, FAILED = 0, 1, 2, 255
ATTRIBUTE = "user.fake.verity"
RUN = """
import json, os, sys
from composefs_async._native import _core
path, *batches = json.loads(sys.argv[1])
fd = os.open(path, os.O_RDONLY)
for items, verity, tmpfile in batches:
    _, outcomes, failures, supported = _core.store(fd, [item.encode() for item in items], 2, verity, tmpfile)
    print(json.dumps([list(outcomes), failures, supported]))
"""

Store = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc is not on PATH")
    folder = tmp_path_factory.mktemp("fake")
    library = folder / "fake_verity.so"
    files = [SOURCES / f"{name}.c" for name in ("files", "sha2", "sha2_arm", "sha2_shani", "sha2_x86", "verity")]
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wl,-Bsymbolic", f"-I{SOURCES}", "-o", library]
    subprocess.run([*command, Path(__file__).with_name("fake_verity.c"), *files, "-ldl"], check=True)
    (folder / "probe").touch()
    try:
        os.setxattr(folder / "probe", ATTRIBUTE, b"1")
    except OSError:
        pytest.skip("the file system of the tests has no extended attributes")
    return library


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    (tmp_path / "objects").mkdir()
    return tmp_path / "objects"


@pytest.fixture
def store(core: ModuleType, fake: Path, objects: Path) -> Store:
    """Stores each batch in one process under the fake; the results without the ids."""

    def run(*batches: tuple[list[str], int, bool], **settings: str) -> list[Any]:
        environment = preloading(fake) | settings
        done = subprocess.run(
            [sys.executable, "-P", "-c", RUN, json.dumps([str(objects), *batches])],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def path_of(objects: Path, content: str) -> Path:
    return objects / _python.digest(content.encode(), Algorithm.SHA512).path


def protection(content: str) -> bytes:
    return b"\2" + _python.digest(content.encode(), Algorithm.SHA512)


def state(objects: Path) -> dict[str, bool]:
    """Content of every file, and whether it is protected."""
    found = {}
    for path in objects.rglob("*"):
        if path.is_file():
            found[path.read_text()] = ATTRIBUTE in os.listxattr(path)
    return found


@pytest.mark.parametrize("tmpfile", [True, False])
@pytest.mark.parametrize("verity", [1, 2])
def test_objects_are_protected(store: Store, objects: Path, verity: int, tmpfile: bool) -> None:
    batch = (["a", "b", "a"], verity, tmpfile)
    assert store(batch, batch) == [[[STORED, STORED, PRESENT], [], 1], [[PRESENT] * 3, [], -1]]
    assert state(objects) == {"a": True, "b": True}
    assert os.getxattr(path_of(objects, "a"), ATTRIBUTE) == protection("a")


@pytest.mark.parametrize("tmpfile", [True, False])
def test_secure_store_replaces_what_does_not_measure_as_its_name(store: Store, objects: Path, tmpfile: bool) -> None:
    for content in ("unprotected", "otherwise", "algorithm", "good"):
        path_of(objects, content).parent.mkdir(exist_ok=True)
        path_of(objects, content).write_text(content)
    os.setxattr(path_of(objects, "otherwise"), ATTRIBUTE, protection("something else"))
    os.setxattr(path_of(objects, "algorithm"), ATTRIBUTE, b"\1" + protection("algorithm")[1:])
    os.setxattr(path_of(objects, "good"), ATTRIBUTE, protection("good"))
    inode = path_of(objects, "good").stat().st_ino
    batch = (["unprotected", "otherwise", "algorithm", "good"], 2, tmpfile)
    assert store(batch, batch) == [[[REPLACED] * 3 + [PRESENT], [], 1], [[PRESENT] * 4, [], -1]]
    assert state(objects) == dict.fromkeys(batch[0], True)
    assert path_of(objects, "good").stat().st_ino == inode


def test_insecure_store_accepts_what_has_the_right_size(store: Store, objects: Path) -> None:
    path_of(objects, "unprotected").parent.mkdir()
    path_of(objects, "unprotected").write_text("unprotected")
    assert store((["unprotected"], 1, True)) == [[[PRESENT], [], -1]]
    assert state(objects) == {"unprotected": False}


@pytest.mark.parametrize("tmpfile", [True, False])
@pytest.mark.parametrize("busy", ["1", "19", "30"])
def test_file_that_a_child_holds_open_is_waited_for_and_then_written_anew(
    store: Store, objects: Path, busy: str, tmpfile: bool
) -> None:
    assert store((["a", "b"], 2, tmpfile), FAKE_BUSY=busy) == [[[STORED, STORED], [], 1]]
    assert state(objects) == {"a": True, "b": True}


@pytest.mark.parametrize("tmpfile", [True, False])
@pytest.mark.parametrize("verity", [1, 2])
def test_file_that_stays_open_is_a_failure(store: Store, objects: Path, verity: int, tmpfile: bool) -> None:
    assert store((["a"], verity, tmpfile), FAKE_BUSY="9999") == [[[FAILED], [[0, errno.ETXTBSY, "verity"]], -1]]
    assert state(objects) == {}


@pytest.mark.parametrize("tmpfile", [True, False])
def test_new_file_that_measures_as_something_else_is_not_published(store: Store, objects: Path, tmpfile: bool) -> None:
    assert store((["a"], 2, tmpfile), FAKE_WRONG="1") == [[[FAILED], [[0, errno.EBADMSG, "measure"]], 1]]
    assert state(objects) == {}


@pytest.mark.parametrize(
    "refused",
    ["tmpfile", "empty_path", "noreplace", "tmpfile,noreplace", "tmpfile,empty_path,noreplace"],
)
@pytest.mark.parametrize("verity", [0, 1, 2])
def test_poorer_kernels_get_the_same_result(store: Store, objects: Path, refused: str, verity: int) -> None:
    path_of(objects, "corrupt").parent.mkdir()
    path_of(objects, "corrupt").write_text("?")
    batch = (["a", "corrupt", "b", "a"], verity, True)
    first, second = store(batch, batch, FAKE_REFUSE=refused)
    assert first == [[STORED, REPLACED, STORED, PRESENT], [], 1 if verity else -1]
    assert second == [[PRESENT] * 4, [], -1]
    assert state(objects) == dict.fromkeys(("a", "b", "corrupt"), verity > 0)
    assert list(objects.rglob(".tmp*")) == []


@pytest.mark.parametrize("refused", ["", "tmpfile", "tmpfile,noreplace", "empty_path"])
@pytest.mark.parametrize(
    ("verity", "faster", "outcome", "left"),
    [
        (0, "mine", PRESENT, "mine"),
        (0, "?", REPLACED, "both"),
        (1, "mine", PRESENT, "mine"),
        (2, "both", REPLACED, "both"),
    ],
)
def test_object_that_appears_meanwhile_is_looked_at(
    store: Store, objects: Path, verity: int, faster: str, outcome: int, left: str, refused: str
) -> None:
    """Insecure repositories go by the size, secure ones by the measurement, which the other file lacks."""
    assert store((["both"], verity, True), FAKE_RACE=faster, FAKE_REFUSE=refused)[0][:2] == [[outcome], []]
    assert list(state(objects)) == [left]
    assert list(objects.rglob(".tmp*")) == []
