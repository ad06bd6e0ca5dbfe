"""Repositories without meta.json get the one that fits them."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from composefs_async._repo import detect, meta_file
from composefs_async._repo.metadata import ErofsFormats, Metadata
from composefs_async.digest import Algorithm, ObjectId
from composefs_async.errors import (
    AlgorithmMismatchError,
    MetadataError,
    RepositoryInUseError,
    RepositoryNotFoundError,
    VerityMissingError,
)
from composefs_async.repository import Repository
from composefs_async.results import UpgradeResult

from ..maintenance.generations import Builder, Image, before_january, entries, february, golden, january

pytestmark = pytest.mark.usefixtures("no_leaks")

algorithms = pytest.mark.parametrize("algorithm", Algorithm, ids=lambda algorithm: algorithm.value)
FLAT, CLASSIC = "composefs.image", "composefs.image.v1"


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image.make(tmp_path / "layout")


def g1(path: Path, algorithm: Algorithm, image: Image) -> dict[str, int]:
    january(path, algorithm, image)
    return {"2026-01": 3}


def g2(path: Path, algorithm: Algorithm, image: Image) -> dict[str, int]:
    february(path, algorithm, image)
    return {"2026-01": 4}


@algorithms
@pytest.mark.parametrize("build", [g1, g2])
def test_only_meta_json_is_written_and_says_what_is_there(
    build: Callable[[Path, Algorithm, Image], dict[str, int]], algorithm: Algorithm, tmp_path: Path, image: Image
) -> None:
    path = tmp_path / "repo"
    forms = build(path, algorithm, image)
    before = entries(path)
    content = Metadata.new(algorithm, ErofsFormats(2)).encode()
    expected = UpgradeResult(True, content, algorithm, False, (2,), forms, 0)
    assert Repository.upgrade(path, dry_run=True) == expected
    assert not (path / "meta.json").exists()
    assert Repository.upgrade(path) == expected
    assert (path / "meta.json").read_bytes() == content
    assert len(content) == 197
    assert entries(path) == before
    again = UpgradeResult(False, b"", algorithm, False, (2,), forms, 0)
    assert (Repository.upgrade(path), Repository.upgrade(path, dry_run=True)) == (again, again)


@pytest.mark.parametrize(("flavour", "algorithm"), [("g3-sha512", Algorithm.SHA512), ("g3-sha256", Algorithm.SHA256)])
def test_images_of_march_stay_those_of_the_default_layout(flavour: str, algorithm: Algorithm, tmp_path: Path) -> None:
    path = golden(flavour, tmp_path / "golden")
    before = entries(path)
    result = Repository.upgrade(path)
    assert (result.algorithm, result.erofs_versions, result.hidden_images) == (algorithm, (2,), 0)
    assert set(result.streams) == {"2026-03"}
    assert entries(path) == before


def test_a_lost_meta_json_comes_back_as_it_was(tmp_path: Path) -> None:
    path = golden("g4-sha512-v1", tmp_path / "golden")
    Repository.upgrade(path)
    assert (path / "meta.json").read_bytes() == Metadata.new(Algorithm.SHA512, ErofsFormats(1)).encode()


@pytest.mark.parametrize(
    ("refs", "versions", "hidden"),
    [
        ([], (2,), 0),
        ([[FLAT]], (2,), 0),
        ([["composefs.image.boot.xattrs=keep-user-xattrs"]], (2,), 0),
        ([[CLASSIC]], (1,), 0),
        ([["composefs.image.boot.v1"], []], (1,), 0),
        ([[FLAT, CLASSIC]], (1, 2), 0),
        ([[FLAT, CLASSIC], [FLAT]], (2, 1), 0),
        ([[FLAT], [CLASSIC], [CLASSIC]], (1, 2), 1),
    ],
)
def test_layouts_follow_from_what_configs_refer_to(
    refs: list[list[str]], versions: tuple[int, ...], hidden: int, tmp_path: Path
) -> None:
    path = tmp_path / "repo"
    for number, keys in enumerate(refs or [[]]):
        image = Image.make(tmp_path / f"layout{number}", b"%d" % number)
        builder = Builder(path, Algorithm.SHA256, january=False)
        builder.manifest(image, f"tag{number}", more={key: builder.object(key.encode()) for key in keys})
    result = Repository.upgrade(path)
    assert (result.erofs_versions, result.hidden_images) == (versions, hidden)


def test_a_damaged_config_does_not_hold_it_up(tmp_path: Path, image: Image) -> None:
    path = tmp_path / "repo"
    builder = february(path, Algorithm.SHA256, image)
    damaged = builder.object(b"no stream")
    builder.link("streams/oci-config-sha256:" + 64 * "0", f"../objects/{damaged.path}")
    builder.link("streams/away", f"../objects/{ObjectId(bytes(32)).path}")
    assert Repository.upgrade(path).streams == {"2026-01": 4, "damaged": 2}


# -- what cannot be upgraded -------------------------------------------------------------------


def test_names_of_two_algorithms_are_an_error_that_names_one_of_each(tmp_path: Path, image: Image) -> None:
    path = tmp_path / "repo"
    january(path, Algorithm.SHA512, image)
    stray = Builder(path, Algorithm.SHA256, january=True).object(b"stray")
    with pytest.raises(MetadataError, match=rf"two algorithms,.* 1 by sha256 \(such as objects/{stray.path}\)"):
        Repository.upgrade(path)
    assert not (path / "meta.json").exists()


@pytest.mark.parametrize(
    ("make", "error", "reason"),
    [
        (lambda path: None, RepositoryNotFoundError, "no such file"),
        (lambda path: path.mkdir(), RepositoryNotFoundError, "neither meta.json nor an object"),
        (lambda path: (path / "objects/ab").mkdir(parents=True), RepositoryNotFoundError, "neither"),
        (lambda path: before_january(path, Algorithm.SHA256), MetadataError, "before 2026-01.*--reset-metadata"),
    ],
)
def test_what_says_nothing_or_cannot_be_read_is_refused(
    make: Callable[[Path], object], error: type[Exception], reason: str, tmp_path: Path
) -> None:
    make(tmp_path / "repo")
    with pytest.raises(error, match=reason):
        Repository.upgrade(tmp_path / "repo")
    assert not (tmp_path / "repo/meta.json").exists()


def test_streams_that_are_too_old_beside_others_are_counted(tmp_path: Path, image: Image) -> None:
    before_january(tmp_path / "repo", Algorithm.SHA256)
    january(tmp_path / "repo", Algorithm.SHA256, image)
    assert Repository.upgrade(tmp_path / "repo").streams == {"before 2026-01": 1, "2026-01": 3}


@pytest.mark.parametrize("present", [False, True])
def test_another_algorithm_than_the_one_asked_for_is_refused(present: bool, tmp_path: Path, image: Image) -> None:
    january(tmp_path / "repo", Algorithm.SHA256, image)
    if present:
        Repository.upgrade(tmp_path / "repo")
    with pytest.raises(AlgorithmMismatchError):
        Repository.upgrade(tmp_path / "repo", algorithm=Algorithm.SHA512)
    assert (tmp_path / "repo/meta.json").exists() == present


# -- security ----------------------------------------------------------------------------------


@pytest.fixture
def protected(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Paths of objects that count as protected by fs-verity, which these file systems cannot do."""
    found: set[str] = set()
    monkeypatch.setattr(detect, "_is_protected", lambda fd, each, algorithm: each.path in found)
    return found


def test_one_object_without_protection_makes_it_insecure(tmp_path: Path, image: Image, protected: set[str]) -> None:
    path = tmp_path / "repo"
    january(path, Algorithm.SHA256, image)
    objects = sorted(str(each.relative_to(path / "objects")) for each in (path / "objects").glob("*/*"))
    protected.update(objects)
    assert Repository.upgrade(path, dry_run=True).secure
    protected.remove(objects[-1])
    assert not Repository.upgrade(path, dry_run=True).secure
    with pytest.raises(VerityMissingError, match=objects[-1]):
        Repository.upgrade(path, require_verity=True)
    assert not (path / "meta.json").exists()


# -- several at once ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [(ErofsFormats(2), ((2,), 0)), (ErofsFormats(1), ((1,), 1))],
    ids=["equal", "other layout"],
)
def test_whoever_loses_the_race_takes_what_the_winner_wrote(
    theirs: ErofsFormats,
    expected: tuple[tuple[int, ...], int],
    tmp_path: Path,
    image: Image,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "repo"
    builder = february(path, Algorithm.SHA256, image, more={FLAT: ObjectId(bytes(32))})
    content = Metadata.new(Algorithm.SHA256, theirs).encode()
    write = meta_file.write

    def late(*arguments: object, **options: object) -> bool:
        (path / "meta.json").write_bytes(content)
        return write(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(meta_file, "write", late)
    result = Repository.upgrade(builder.path)
    assert (result.upgraded, result.erofs_versions, result.hidden_images) == (False, *expected)
    assert (path / "meta.json").read_bytes() == content


def test_a_winner_that_names_the_other_algorithm_is_told_of(
    tmp_path: Path, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "repo"
    january(path, Algorithm.SHA256, image)
    (path / "meta.json").write_bytes(Metadata.new(Algorithm.SHA512, ErofsFormats(1)).encode())
    reads = iter([FileNotFoundError()])
    read = meta_file.read

    def first_missing(fd: int, name: str) -> tuple[Metadata, Algorithm | None]:
        for error in reads:
            raise error
        return read(fd, name)

    monkeypatch.setattr(meta_file, "read", first_missing)
    with pytest.raises(AlgorithmMismatchError, match="just written"):
        Repository.upgrade(path)


def test_many_threads_upgrade_and_one_of_them_writes(tmp_path: Path, image: Image) -> None:
    path = tmp_path / "repo"
    january(path, Algorithm.SHA256, image)
    start, results = threading.Barrier(8), []

    def work() -> None:
        start.wait()
        results.append(Repository.upgrade(path))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result.upgraded for result in results) == [False] * 7 + [True]
    assert sorted(os.listdir(path)) == ["meta.json", "objects", "streams"]


def test_it_waits_for_whoever_has_the_repository_alone_and_not_for_readers(tmp_path: Path, image: Image) -> None:
    path = tmp_path / "repo"
    january(path, Algorithm.SHA256, image)
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(RepositoryInUseError):
        Repository.upgrade(path, timeout=0)
    fcntl.flock(fd, fcntl.LOCK_SH)
    assert Repository.upgrade(path, timeout=0).upgraded
    os.close(fd)


# -- init --------------------------------------------------------------------------------------


def test_init_with_ensure_upgrades_and_without_refuses(tmp_path: Path, image: Image) -> None:
    path = tmp_path / "repo"
    february(path, Algorithm.SHA256, image)
    with pytest.raises(MetadataError, match="composefs-async upgrade"):
        Repository.init(path, algorithm=Algorithm.SHA256, insecure=True)
    with pytest.raises(AlgorithmMismatchError):
        Repository.init(path, algorithm=Algorithm.SHA512, insecure=True, ensure=True)
    assert not (path / "meta.json").exists()
    repo = Repository.init(path, algorithm=Algorithm.SHA256, insecure=True, ensure=True)
    created = repo.is_new
    with repo:
        assert (created, repo.metadata.formats) == (False, ErofsFormats(2))


@pytest.mark.anyio
async def test_the_async_forms_do_the_same(tmp_path: Path, image: Image) -> None:
    path = tmp_path / "repo"
    january(path, Algorithm.SHA256, image)
    planned = await Repository.upgrade_async(path, dry_run=True)
    assert await Repository.upgrade_async(path) == planned
    async with await Repository.open_path_async(path) as repo:
        assert await repo.has_named_stream_async("app")


@pytest.mark.anyio
@pytest.mark.parametrize("operation", ["upgrade", "init", "reset_metadata"])
async def test_waiting_for_the_lock_ends_by_a_cancellation(
    operation: str, tmp_path: Path, image: Image, no_blocking: object
) -> None:
    path = tmp_path / "repo"
    january(path, Algorithm.SHA256, image)
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "upgrade": lambda: Repository.upgrade_async(path),
        "init": lambda: Repository.init_async(path, algorithm=Algorithm.SHA256, insecure=True, ensure=True),
        "reset_metadata": lambda: Repository.reset_metadata_async(
            path, algorithm=Algorithm.SHA256, insecure=True, timeout=None
        ),
    }
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with anyio.move_on_after(0.1) as scope:
        await calls[operation]()
    os.close(fd)
    assert scope.cancelled_caught
    assert sorted(os.listdir(path)) == ["objects", "streams"]
