from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from composefs_async import fsverity
from composefs_async._sys import verity
from composefs_async._sys.probe import probe
from composefs_async.digest import Algorithm, ObjectId
from composefs_async.errors import (
    AlgorithmMismatchError,
    MetadataError,
    ReadOnlyRepositoryError,
    RepositoryInUseError,
    RepositoryNotFoundError,
    VerityMissingError,
    VerityNotSupportedError,
)
from composefs_async.repository import Repository


def init(path: Path, **options: object) -> bool:
    repo = Repository.init(path, insecure=True, **options)
    created = repo.is_new  # type: ignore[arg-type]
    repo.close()
    return created


def test_init_makes_a_private_directory_with_the_default_metadata_and_nothing_else(tmp_path: Path) -> None:
    assert init(tmp_path / "r")
    assert os.listdir(tmp_path / "r") == ["meta.json"]
    assert (tmp_path / "r").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "r/meta.json").stat().st_size == 219


def test_init_again_opens_an_equal_repository(tmp_path: Path) -> None:
    assert [init(tmp_path / "r"), init(tmp_path / "r")] == [True, False]


@pytest.mark.parametrize("options", [{"algorithm": Algorithm.SHA256}, {"erofs_version": 2}, {"erofs_version": None}])
def test_init_over_a_different_repository_is_refused(tmp_path: Path, options: dict[str, object]) -> None:
    init(tmp_path / "r")
    before = (tmp_path / "r/meta.json").read_bytes()
    with pytest.raises(MetadataError, match="already initialized with different configuration"):
        init(tmp_path / "r", **options)
    assert (tmp_path / "r/meta.json").read_bytes() == before


def test_the_form_from_before_there_was_a_choice_is_equal_to_what_it_means(tmp_path: Path) -> None:
    assert [init(tmp_path / "r", erofs_version=version) for version in (None, 2, None)] == [True, False, False]


def test_init_over_names_without_metadata_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r/streams/refs").mkdir(parents=True)
    with pytest.raises(MetadataError, match=r"it was made before meta\.json existed; 'composefs-async upgrade'"):
        init(tmp_path / "r")
    assert os.listdir(tmp_path / "r") == ["streams"]


def test_ensure_takes_another_format_but_not_another_algorithm(tmp_path: Path) -> None:
    init(tmp_path / "r", erofs_version=2)
    assert not init(tmp_path / "r", ensure=True)
    with pytest.raises(AlgorithmMismatchError):
        init(tmp_path / "r", ensure=True, algorithm=Algorithm.SHA256)


def test_init_where_objects_of_another_algorithm_are_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r/objects/ab").mkdir(parents=True)
    (tmp_path / "r/objects/ab" / ("c" * 62)).touch()
    with pytest.raises(MetadataError, match="sha256"):
        init(tmp_path / "r")
    assert init(tmp_path / "r", algorithm=Algorithm.SHA256)


def test_a_secure_init_without_verity_leaves_what_was_there(tmp_path: Path) -> None:
    if probe(tmp_path).verity:
        pytest.skip("the file system for temporary files supports fs-verity")
    with pytest.raises(VerityNotSupportedError):
        Repository.init(tmp_path / "r")
    assert os.listdir(tmp_path) == []
    (tmp_path / "r").mkdir()
    with pytest.raises(VerityNotSupportedError):
        Repository.init(tmp_path / "r")
    assert os.listdir(tmp_path) == ["r"]


def test_a_secure_init_over_an_insecure_repository_is_refused(tmp_path: Path) -> None:
    init(tmp_path / "r")
    with pytest.raises(MetadataError, match="insecure"):
        Repository.init(tmp_path / "r")


def test_security_is_detected_and_can_be_demanded(tmp_path: Path) -> None:
    init(tmp_path / "r")
    with Repository.open_path(tmp_path / "r") as repo:
        assert not repo.secure
        with pytest.raises(VerityMissingError):
            repo.require_verity()


def test_metadata_that_is_guarded_makes_a_repository_secure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for algorithm in Algorithm:
        init(tmp_path / algorithm.value, algorithm=algorithm)

    def measure(fd: int, algorithm: Algorithm, what: str) -> ObjectId:
        if algorithm is not Algorithm.SHA512:
            raise AlgorithmMismatchError(what, algorithm.value, "sha512")
        return ObjectId(bytes(64))

    monkeypatch.setattr(verity, "measure", measure)
    with Repository.open_path(tmp_path / "sha512") as repo:
        assert repo.secure
        repo.require_verity()
        Repository.init(tmp_path / "sha512").close()
    with pytest.raises(AlgorithmMismatchError, match=r"protection of .*meta.json uses sha512, expected sha256"):
        Repository.open_path(tmp_path / "sha256")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.touch(), "not a directory"),
        (lambda path: path.mkdir(), "no meta.json$"),
        (lambda path: (path / "objects").mkdir(parents=True), "needs an upgrade"),
    ],
)
def test_what_is_no_repository_is_not_found(tmp_path: Path, make: object, reason: str) -> None:
    make(tmp_path / "r")  # type: ignore[operator]
    with pytest.raises(RepositoryNotFoundError, match=reason):
        Repository.open_path(tmp_path / "r")


def test_the_users_repository_is_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".var/lib").mkdir(parents=True)
    init(tmp_path / ".var/lib/composefs")
    with Repository.open_user() as repo:
        assert repo.path == f"{tmp_path}/.var/lib/composefs"
    monkeypatch.delenv("HOME")
    with pytest.raises(RepositoryNotFoundError, match="HOME"):
        Repository.open_user()


def add_feature(path: Path) -> None:
    text = (path / "meta.json").read_text()
    (path / "meta.json").write_text(text.replace('"v1_erofs"', '"v1_erofs", "later"'))


def test_unknown_read_only_features_allow_reading_and_forbid_writing(tmp_path: Path) -> None:
    init(tmp_path / "r")
    with Repository.open_path(tmp_path / "r") as repo:
        stored = repo.ensure_object(b"content")
    add_feature(tmp_path / "r")
    with Repository.open_path(tmp_path / "r") as repo:
        assert repo.read_object(stored.id) == b"content"
        writes = [
            lambda: repo.ensure_object(b"x"),
            lambda: repo.ensure_objects([b"x"]),
            repo.create_object_tmpfile,
            lambda: repo.register_stream(stored.id, "s"),
            lambda: repo.unname_stream("s"),
        ]
        for write in writes:
            with pytest.raises(ReadOnlyRepositoryError, match="later"):
                write()


def test_close_can_be_repeated_and_ends_all_use(tmp_path: Path) -> None:
    init(tmp_path / "r")
    repo = Repository.open_path(tmp_path / "r")
    repo.close()
    repo.close()
    object_id = fsverity.digest(b"x", repo.algorithm)
    for use in (
        lambda: repo.ensure_object(b"x"),
        lambda: repo.open_object(object_id),
        lambda: repo.read_object(object_id),
        repo.create_object_tmpfile,
        repo.objects_dir,
    ):
        with pytest.raises(ValueError, match="closed"):
            use()


# -- locks -------------------------------------------------------------------------------------


def flock(path: Path, operation: int) -> int:
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, operation | fcntl.LOCK_NB)
    return fd


def test_a_handle_holds_the_shared_lock_until_it_is_closed(tmp_path: Path) -> None:
    init(tmp_path / "r")
    with Repository.open_path(tmp_path / "r"):
        os.close(flock(tmp_path / "r", fcntl.LOCK_SH))
        with pytest.raises(BlockingIOError):
            flock(tmp_path / "r", fcntl.LOCK_EX)
    os.close(flock(tmp_path / "r", fcntl.LOCK_EX))


def test_opening_gives_up_when_somebody_holds_the_repository_for_longer_than_the_timeout(tmp_path: Path) -> None:
    init(tmp_path / "r")
    fd = flock(tmp_path / "r", fcntl.LOCK_EX)
    with pytest.raises(RepositoryInUseError):
        Repository.open_path(tmp_path / "r", timeout=0)
    os.close(fd)


def test_exclusive_excludes_all_others_and_returns_to_shared(tmp_path: Path) -> None:
    init(tmp_path / "r")
    with Repository.open_path(tmp_path / "r") as repo:
        with repo.exclusive("a test"), pytest.raises(BlockingIOError):
            flock(tmp_path / "r", fcntl.LOCK_SH)
        os.close(flock(tmp_path / "r", fcntl.LOCK_SH))
        with pytest.raises(BlockingIOError):
            flock(tmp_path / "r", fcntl.LOCK_EX)


def test_a_failed_upgrade_keeps_the_shared_lock_and_does_not_deadlock_two_handles(tmp_path: Path) -> None:
    init(tmp_path / "r")
    with Repository.open_path(tmp_path / "r") as one:
        with (
            Repository.open_path(tmp_path / "r"),
            pytest.raises(RepositoryInUseError, match="a test"),
            one.exclusive("a test", timeout=0),
        ):
            raise AssertionError("it is not alone")
        with pytest.raises(BlockingIOError):
            flock(tmp_path / "r", fcntl.LOCK_EX)


def test_an_error_inside_an_exclusive_block_gives_the_lock_back(tmp_path: Path) -> None:
    init(tmp_path / "r")
    with Repository.open_path(tmp_path / "r") as repo:
        with pytest.raises(KeyError), repo.exclusive("a test"):
            raise KeyError
        with repo.exclusive("again", timeout=0):
            pass


def test_operations_of_other_threads_wait_for_an_exclusive_block_and_those_of_its_own_do_not(tmp_path: Path) -> None:
    init(tmp_path / "r")
    order = []
    with Repository.open_path(tmp_path / "r") as repo:
        thread = threading.Thread(target=lambda: order.append(repo.ensure_object(b"other").size))
        with repo.exclusive("a test"):
            thread.start()
            order.append(repo.ensure_object(b"own").size)
            thread.join(0.05)
            assert thread.is_alive()
        thread.join(10)
    assert order == [3, 5]
