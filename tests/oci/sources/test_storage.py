"""Images in containers-storage and in Docker's store: golden stores, odd layers, damage, locks, references."""

from __future__ import annotations

import base64
import fcntl
import gzip
import json
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from composefs_async._sys import in_root, record_locks
from composefs_async.digest import sha256_content_digest
from composefs_async.errors import (
    ComposefsError,
    DigestMismatchError,
    ImageNotFoundError,
    InvalidNameError,
    OciError,
    TransportError,
)
from composefs_async.oci import pull
from composefs_async.oci.sources.storage import configuration, records
from composefs_async.oci.sources.storage.configuration import StorePlace, store_places
from composefs_async.oci.sources.storage.files import _checksum
from composefs_async.oci.sources.storage.reference import ImageName, parse_reference
from composefs_async.repository import Repository

from ..sources_golden import CONFIG, DIFF_IDS, MADE, PULLED, unpack

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leaks")]

NOFIFO = "sha256:3428f1ad8323a848d92e15f37ab55cd7950acf09f52b8478b31e67ab111f150d"


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.geteuid() != 0:
        pytest.skip("stores have whiteouts, which are devices, and files of other users: root is needed")
    return unpack(tmp_path_factory.mktemp("golden"), "stores")


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Repository]:
    with Repository.init(tmp_path / "repo", insecure=True) as opened:
        yield opened


def streams(repo: Repository) -> list[str]:
    return sorted(path.name for path in Path(repo.path, "streams").glob("oci-*"))


def modes(repo: Repository) -> set[int]:
    """Of all objects."""
    return {stat.S_IMODE(path.stat().st_mode) for path in Path(repo.path, "objects").glob("*/*")}


def listing(path: Path) -> dict[str, Any]:
    """All of a store, with times."""
    return {
        str(entry): (entry.lstat().st_mode, entry.lstat().st_mtime_ns, entry.lstat().st_ctime_ns, entry.lstat().st_size)
        for entry in path.rglob("*")
    }


@pytest.mark.parametrize(
    ("reference", "manifest", "diff_ids"),
    [
        ("[overlay@{}/overlay-store+/run/x]localhost/golden:v1", PULLED, DIFF_IDS),
        ("[{}/overlay-store]localhost/other:v2", PULLED, DIFF_IDS),
        ("[{}/overlay-store]be83a", PULLED, DIFF_IDS),
        ("[{}/overlay-store]@be83a842b04e", PULLED, DIFF_IDS),
        (f"[{{}}/overlay-store]localhost/golden@{PULLED}", PULLED, DIFF_IDS),
        (f"[{{}}/overlay-store]localhost/golden:v1@{CONFIG.partition(':')[2]}", PULLED, DIFF_IDS),
        ("[vfs@{}/vfs-store]localhost/golden:v1", PULLED, DIFF_IDS),
        ("[{}/rootless-store]localhost/golden:v1", PULLED, DIFF_IDS),
        ("[{}/masked-store]localhost/golden:v1", "sha256:96b45fe8", [NOFIFO, *DIFF_IDS[1:]]),
        ("[{}/composefs-store]localhost/golden:z", "sha256:6fe514be", [NOFIFO, *DIFF_IDS[1:]]),
        (
            "[overlay@{0}/upper-store+/run/x:additionalimagestore={0}/overlay-store]localhost/ontop:1",
            "sha256:4c01ba7b",
            [*DIFF_IDS, "sha256:386b418f3dc4"],
        ),
        ("[{}/built-store]localhost/list:1", "sha256:29d6a4a2", ["sha256:71640993c7d8"]),
    ],
)
async def test_golden_images_come_out_of_every_store_which_stays_as_it_was(
    stores: Path, repo: Repository, reference: str, manifest: str, diff_ids: list[str]
) -> None:
    before = listing(stores)
    result = await pull(repo, f"containers-storage:{reference.format(stores)}", tag="it")
    assert result.manifest_digest.startswith(manifest)
    assert [layer.diff_id[: len(each)] for layer, each in zip(result.layers, diff_ids, strict=True)] == diff_ids
    assert listing(stores) == before
    assert modes(repo) == {0o644}


async def test_layers_are_stored_as_from_an_image_directory(stores: Path, tmp_path: Path) -> None:
    archives = unpack(tmp_path, "archives")
    found = []
    references = [f"oci:{archives}/golden-oci", f"containers-storage:[{stores}/overlay-store]be83a"]
    for number, reference in enumerate(references):
        with Repository.init(tmp_path / str(number), insecure=True) as repo:
            result = await pull(repo, reference, tag="it")
            found.append([result.image_id, result.manifest_id, *(layer.stream_id for layer in result.layers)])
    assert found[0] == found[1]


ODD = {
    "gnu-long": True,
    "nonutf8": True,
    "slash": True,
    "nodirs": True,
    "notrailer": True,
    "garbage-after": True,
    "bigheader": True,
    "empty-layer": True,
    "zero-bytes": True,
    "absdir": True,
    "reldir": True,
    "dotdot": True,
    "sparse-pax": False,
}


@pytest.mark.parametrize(("name", "good"), ODD.items(), ids=ODD)
async def test_odd_layers(stores: Path, repo: Repository, name: str, good: bool) -> None:
    work = partial(
        pull, repo, f"containers-storage:[{stores}/odd-store]localhost/{name}:t", tag="it", make_images=False
    )
    if good:
        assert len((await work()).layers) == 1
    else:
        with pytest.raises(OciError, match="sparse files, which containers-storage does not keep"):
            await work()


@pytest.mark.parametrize("steps", [False, True], ids=["openat2", "steps"])
async def test_links_of_a_layer_stay_in_it(
    stores: Path, repo: Repository, monkeypatch: pytest.MonkeyPatch, steps: bool
) -> None:
    if steps:

        def missing(*_: object) -> int:
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(in_root, "openat2", missing)
    for name in ("absdir", "reldir", "dotdot"):
        reference = f"containers-storage:[{stores}/odd-store]localhost/{name}:t"
        assert len((await pull(repo, reference, tag=name, make_images=False)).layers) == 1


# -- damage ------------------------------------------------------------------------------------


@pytest.fixture
def store(stores: Path, tmp_path: Path) -> Path:
    """A copy of the overlay store, to be damaged."""
    subprocess.run(["cp", "-a", stores / "overlay-store", tmp_path / "store"], check=True)
    return tmp_path / "store"


LOWEST = DIFF_IDS[0].partition(":")[2]


def lines(store: Path) -> list[Any]:
    path = store / f"overlay-layers/{LOWEST}.tar-split.gz"
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def rewrite(store: Path, entries: list[Any]) -> None:
    path = store / f"overlay-layers/{LOWEST}.tar-split.gz"
    path.write_bytes(gzip.compress(b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)))


def first_file(store: Path) -> tuple[int, str, Path]:
    """Position, name and path of a regular file that is larger than 64 bytes."""
    diff = store / f"overlay/{LOWEST}/diff"
    for at, entry in enumerate(lines(store)):
        if entry["type"] == 1 and entry.get("size", 0) > 64 and not (diff / entry["name"]).is_symlink():
            return at, entry["name"], diff / entry["name"]
    raise AssertionError


def change(store: Path) -> str:
    _, name, path = first_file(store)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return name.removeprefix("./")


def remove(store: Path) -> str:
    _, name, path = first_file(store)
    path.unlink()
    return name.removeprefix("./")


def replace(how: Callable[[Path], object]) -> Callable[[Path], str]:
    def damage(store: Path) -> str:
        name = remove(store)
        how(store / f"overlay/{LOWEST}/diff/{name}")
        return name

    return damage


def edit(how: Callable[[list[Any], int], object], text: str) -> Callable[[Path], str]:
    def damage(store: Path) -> str:
        entries, (at, _, _) = lines(store), first_file(store)
        how(entries, at)
        rewrite(store, entries)
        return text

    return damage


def json_file(name: str, content: bytes, text: str) -> Callable[[Path], str]:
    def damage(store: Path) -> str:
        (store / name).write_bytes(content)
        return text

    return damage


def away(*names: str) -> Callable[[Path], str]:
    def damage(store: Path) -> str:
        for name in names:
            path = store / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return ""

    return damage


DAMAGE: dict[str, Callable[[Path], str]] = {
    "changed byte": change,
    "removed": remove,
    "link to a file outside": replace(lambda path: path.symlink_to("/etc/passwd")),
    "fifo": replace(os.mkfifo),
    "directory": replace(Path.mkdir),
    "shorter": replace(lambda path: path.write_bytes(b"x")),
    "line removed": edit(lambda entries, at: entries.pop(at), "tar-split is damaged at line"),
    "gap": edit(lambda entries, at: entries[at].update(position=10_000), "tar-split is damaged at line"),
    "bad base64": edit(lambda entries, at: entries[at - 1].update(payload="%%%"), "tar-split is damaged at line"),
    "other size": edit(lambda entries, at: entries[at].update(size=entries[at]["size"] + 1), "bytes, not"),
    "huge size": edit(lambda entries, at: entries[at].update(size=1 << 60), "bytes, not"),
    "negative size": edit(lambda entries, at: entries[at].update(size=-1), "tar-split is damaged at line"),
    "size of text": edit(lambda entries, at: entries[at].update(size="1"), "tar-split is damaged at line"),
    "name outside": edit(lambda entries, at: entries[at].update(name="../../../../../../etc/hostname"), ""),
    "other type": edit(lambda entries, at: entries[at].update(type=3), "tar-split is damaged at line"),
    "no recipe": away(f"overlay-layers/{LOWEST}.tar-split.gz"),
    "no files": away(f"overlay/{LOWEST}/diff"),
    "recipe not packed": json_file(f"overlay-layers/{LOWEST}.tar-split.gz", b"nonsense", "tar-split is damaged"),
    "recipe cut": lambda store: (
        (path := store / f"overlay-layers/{LOWEST}.tar-split.gz").write_bytes(path.read_bytes()[:-100]) and ""
    ),
    "images.json": json_file("overlay-images/images.json", b"[", "images.json: it is not valid JSON"),
    "no images.json": away("overlay-images/images.json"),
    "no images in it": json_file("overlay-images/images.json", b"[]", "the store has no images"),
    "layers.json": json_file("overlay-layers/layers.json", b"{}", "where a list belongs"),
    "no layers": json_file("overlay-layers/layers.json", b"[]", "is in no store"),
}


@pytest.mark.parametrize("case", DAMAGE)
async def test_damage_is_named_and_nothing_is_published(repo: Repository, store: Path, case: str) -> None:
    text = DAMAGE[case](store)
    with pytest.raises(ComposefsError) as caught:
        await pull(repo, f"containers-storage:[{store}]localhost/golden:v1", tag="it")
    assert text in str(caught.value)
    assert streams(repo) == []


async def test_damaged_files_are_all_named(repo: Repository, store: Path) -> None:
    diff = store / f"overlay/{LOWEST}/diff"
    names = [entry["name"] for entry in lines(store) if entry["type"] == 1 and entry.get("size", 0) > 64][:3]
    for name in names:
        content = (diff / name).read_bytes()
        (diff / name).write_bytes(b"\0" + content[1:] if content[:1] != b"\0" else b"\1" + content[1:])
    with pytest.raises(DigestMismatchError) as caught:
        await pull(repo, f"containers-storage:[{store}]localhost/golden:v1", tag="it")
    assert [name for name in names if name.removeprefix("./") not in str(caught.value)] == []
    assert "pull the image again" in str(caught.value)


async def test_link_in_the_place_of_a_layer_is_not_followed(repo: Repository, store: Path, tmp_path: Path) -> None:
    diff = store / f"overlay/{LOWEST}/diff"
    diff.rename(tmp_path / "elsewhere")
    diff.symlink_to(tmp_path / "elsewhere")
    with pytest.raises((ComposefsError, OSError)):
        await pull(repo, f"containers-storage:[{store}]localhost/golden:v1", tag="it")
    assert streams(repo) == []


@pytest.mark.parametrize(
    ("data", "checksum"),
    # The first two are from Go's tests of hash/crc64 with the table ISO.
    [(b"", "0000000000000000"), (b"a", "3420000000000000"), (b"abcdefgh", None), (b"x" * 10_003, None)],
)
async def test_checksum_is_that_of_go(data: bytes, checksum: str | None) -> None:
    slow = (1 << 64) - 1
    for byte in data:
        slow ^= byte
        for _ in range(8):
            slow = (slow >> 1) ^ (0xD800000000000000 if slow & 1 else 0)
    assert _checksum(data).hex() == f"{slow ^ ((1 << 64) - 1):016x}"
    if checksum is not None:
        assert _checksum(data).hex() == checksum


# -- locks -------------------------------------------------------------------------------------


async def test_lock_of_podman_is_waited_for(repo: Repository, store: Path) -> None:
    with (store / "overlay-layers/layers.lock").open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        seen = []

        async def work() -> None:
            await pull(repo, f"containers-storage:[{store}]localhost/golden:v1", tag="it")
            seen.append("pulled")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            await anyio.wait_all_tasks_blocked()
            assert seen == []
            fcntl.lockf(file, fcntl.LOCK_UN)
        assert seen == ["pulled"]


async def test_lock_is_not_waited_for_without_end(
    repo: Repository, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records.Store.__init__, "__defaults__", (0.1,))
    with (store / "overlay-images/images.lock").open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        with pytest.raises(TransportError, match="lock has been locked by somebody else"):
            await pull(repo, f"containers-storage:[{store}]localhost/golden:v1", tag="it")


async def test_writers_are_kept_away(tmp_path: Path) -> None:
    (tmp_path / "lock").write_bytes(b"")
    fd = os.open(tmp_path / "lock", os.O_RDONLY)
    assert record_locks.lock_for_reading(fd, 0)
    with (tmp_path / "lock").open("r+b") as file:
        with pytest.raises(BlockingIOError):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    os.close(fd)
    assert struct.calcsize("hhqqi4x") == 32


@pytest.mark.parametrize("name", ["overlay-images/images.lock", "overlay-layers/layers.lock"])
async def test_without_a_lock_file_a_store_is_read_and_none_is_made(repo: Repository, store: Path, name: str) -> None:
    (store / name).unlink()
    await pull(repo, f"containers-storage:[{store}]localhost/golden:v1", tag="it")
    assert not (store / name).exists()


# -- references and places ---------------------------------------------------------------------

HEX = "ab" * 32
DIGEST = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "image"),
    [
        ("a", ImageName("a", "docker.io/library/a:latest")),
        ("localhost/a:t", ImageName("localhost/a:t", "localhost/a:t")),
        (f"a@{DIGEST}", ImageName(f"a@{DIGEST}", "docker.io/library/a:latest", DIGEST)),
        (f"a:t@{HEX}", ImageName(f"a:t@{HEX}", "docker.io/library/a:t", None, HEX)),
        (f"a@{DIGEST}@{HEX}", ImageName(f"a@{DIGEST}@{HEX}", "docker.io/library/a:latest", DIGEST, HEX)),
        ("@abc", ImageName("@abc", None, None, "abc")),
    ],
)
async def test_names_of_images(text: str, image: ImageName) -> None:
    assert parse_reference(f"containers-storage:{text}").image == image


@pytest.mark.parametrize(
    "text",
    ["", "[/x", "[x]a", "[/x+y]a", "[@/x]a", "[/x]", "@", "@x", f"@{DIGEST}", "A B", "a@sha256:0", "a@b@c"],
)
async def test_references_that_are_none(repo: Repository, text: str) -> None:
    with pytest.raises(InvalidNameError):
        await pull(repo, f"containers-storage:{text}")


async def test_place_of_a_store() -> None:
    found = parse_reference("containers-storage:[vfs@/a:b=c,overlay.additionalimagestore=/d]x")
    assert (found.driver, found.root, found.options) == ("vfs", "/a", ("b=c", "overlay.additionalimagestore=/d"))
    assert store_places(found) == [StorePlace(Path("/a"), "vfs"), StorePlace(Path("/d"), "vfs", True)]


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any configuration but what the test makes below this directory."""
    for name in ("STORAGE_DRIVER", "STORAGE_OPTS", "CONTAINERS_STORAGE_CONF", "CONTAINERS_STORAGE_CONF_OVERRIDE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(configuration, "_SYSTEM", (f"{tmp_path}/usr", f"{tmp_path}/etc"))
    monkeypatch.setenv("XDG_CONFIG_HOME", f"{tmp_path}/home")
    for name in ("usr/storage.conf.d", "etc/storage.conf.d", "home/containers/storage.conf.d"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def places() -> list[tuple[str, str, bool]]:
    found = store_places(parse_reference("containers-storage:x"))
    return [(str(place.root), place.driver, place.additional) for place in found]


async def test_first_configuration_and_all_drop_ins_count(conf: Path) -> None:
    (conf / "usr/storage.conf").write_text('[storage]\ngraphroot = "/usr-root"\n')
    (conf / "etc/storage.conf").write_text(
        '[storage]\ngraphroot = "/etc-root"\ndriver = "vfs"\n[storage.options]\nadditionalimagestores = ["/a"]\n'
    )
    assert places() == [("/etc-root", "vfs", False), ("/a", "vfs", True)]
    (conf / "usr/storage.conf.d/10.conf").write_text('[storage]\ngraphroot = "/hidden"\n')
    (conf / "etc/storage.conf.d/10.conf").write_text(
        '[storage]\ndriver = "overlay"\n[storage.options]\nadditionalimagestores = ["/b", {append = true}]\n'
    )
    (conf / "home/containers/storage.conf.d/20.conf").write_text('[storage]\nimagestore = "/images"\n')
    assert places() == [
        ("/images", "overlay", False),
        ("/etc-root", "overlay", False),
        ("/a", "overlay", True),
        ("/b", "overlay", True),
    ]


async def test_environment_counts_more(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (conf / "etc/storage.conf").write_text('[storage]\ngraphroot = "/etc-root"\n')
    (conf / "own").write_text('[storage]\ngraphroot = "/own-$WHO"\ndriver = "overlay"\n')
    monkeypatch.setenv("WHO", "me")
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(conf / "own"))
    assert places() == [("/own-me", "overlay", False)]
    monkeypatch.setenv("STORAGE_DRIVER", "vfs")
    monkeypatch.setenv("STORAGE_OPTS", "overlay.imagestore=/images,additionalimagestore=/more")
    assert places() == [("/images", "vfs", False), ("/own-me", "vfs", False), ("/more", "vfs", True)]
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(conf / "none"))
    with pytest.raises(TransportError, match="is missing"):
        places()


async def test_configuration_that_is_none(conf: Path) -> None:
    (conf / "etc/storage.conf").write_text("[storage\n")
    with pytest.raises(OciError, match="not valid TOML"):
        places()


@pytest.mark.parametrize(
    ("image", "text"),
    [("localhost/golden:nope", "'localhost/golden:v1'"), ("golden", "'localhost/golden:v1'"), ("@fff", "there are")],
)
async def test_image_that_is_not_there(stores: Path, repo: Repository, image: str, text: str) -> None:
    with pytest.raises(ImageNotFoundError, match=text):
        await pull(repo, f"containers-storage:[{stores}/overlay-store]{image}")


async def test_store_that_is_not_there(tmp_path: Path, repo: Repository) -> None:
    with pytest.raises(ImageNotFoundError, match="there is no store at"):
        await pull(repo, f"containers-storage:[{tmp_path}/none]x")


# -- Docker's own store --------------------------------------------------------------------------


@pytest.fixture
def docker(store: Path, tmp_path: Path) -> Path:
    """Docker's store of the golden image, made of the one of containers-storage: the layers have the same form."""
    root = tmp_path / "docker"
    top = root / "image/overlay2"
    (top / "imagedb/content/sha256").mkdir(parents=True)
    key = base64.b64encode(CONFIG.encode()).decode()
    (config,) = (store / "overlay-images").glob(f"*/={key}")
    shutil.copy(config, top / "imagedb/content/sha256" / CONFIG.partition(":")[2])
    names = {"localhost/golden": {"localhost/golden:v1": CONFIG, f"localhost/golden@{PULLED}": CONFIG}}
    (top / "repositories.json").write_text(json.dumps({"Repositories": names}))
    layers = {
        each["diff-digest"]: each["id"] for each in json.loads((store / "overlay-layers/layers.json").read_text())
    }
    chain = ""
    for number, diff_id in enumerate(DIFF_IDS):
        chain = sha256_content_digest(f"{chain} {diff_id}".encode()) if chain else diff_id
        place = top / "layerdb/sha256" / chain.partition(":")[2]
        place.mkdir(parents=True)
        (place / "diff").write_text(diff_id)
        (place / "cache-id").write_text(f"cache{number}")
        shutil.copy(store / f"overlay-layers/{layers[diff_id]}.tar-split.gz", place / "tar-split.json.gz")
        (root / f"overlay2/cache{number}").mkdir(parents=True)
        (store / f"overlay/{layers[diff_id]}/diff").rename(root / f"overlay2/cache{number}/diff")
    return root


@pytest.mark.parametrize("image", ["localhost/golden:v1", CONFIG])
async def test_image_of_dockers_store(docker: Path, repo: Repository, image: str) -> None:
    result = await pull(repo, f"docker-overlay2:[{docker}]{image}", tag="it")
    assert (result.manifest_digest, [layer.diff_id for layer in result.layers]) == (MADE, DIFF_IDS)


def lose(name: str) -> Callable[[Path], object]:
    return lambda docker: shutil.rmtree(docker / name)


@pytest.mark.parametrize(
    ("damage", "error", "text"),
    [
        (lose("image/overlay2/layerdb"), OciError, "is missing, or has been removed meanwhile"),
        (lose("overlay2/cache0/diff"), ComposefsError, "missing"),
        (lose("image"), ImageNotFoundError, "there is no store of Docker"),
        (
            lambda docker: (
                next((docker / "image/overlay2/layerdb/sha256").iterdir(), docker)
                and [each.write_text("../..") for each in docker.glob("image/overlay2/layerdb/sha256/*/cache-id")]
            ),
            OciError,
            "no name of a layer's directory",
        ),
        (
            lambda docker: next(docker.glob("image/overlay2/imagedb/content/sha256/*")).write_text("{}"),
            DigestMismatchError,
            "config",
        ),
    ],
)
async def test_damage_of_dockers_store(
    docker: Path, repo: Repository, damage: Callable[[Path], object], error: type[Exception], text: str
) -> None:
    damage(docker)
    with pytest.raises(error, match=text):
        await pull(repo, f"docker-overlay2:[{docker}]localhost/golden:v1", tag="it")
    assert streams(repo) == []


@pytest.mark.parametrize("text", ["", "[x]a", "[/x]", "A B"])
async def test_references_to_dockers_store_that_are_none(repo: Repository, text: str) -> None:
    with pytest.raises(InvalidNameError):
        await pull(repo, f"docker-overlay2:{text}")
