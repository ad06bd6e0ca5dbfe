"""Commands that speak to registries: the spelling of options, what is printed, and exit codes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from composefs_async.testing.registry import FakeRegistry, Fault

from ..registry.chunked import ChunkedImage, content, make_chunked, tar_of
from .conftest import Cli

LAYOUT = Path(__file__).parent.parent / "vectors/layouts/one"
DIGEST: str = json.loads((LAYOUT / "index.json").read_bytes())["manifests"][0]["digest"]


class Served:
    """A registry in a thread of its own."""

    def __init__(self) -> None:
        self.registry = FakeRegistry()
        self.host = ""
        self._ready, self._done = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=anyio.run, args=[self._serve])
        self._thread.start()
        self._ready.wait(10)

    async def _serve(self) -> None:
        async with self.registry.serving() as self.host:
            self._ready.set()
            await anyio.to_thread.run_sync(self._done.wait)

    def stop(self) -> None:
        self._done.set()
        self._thread.join()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """With the image ``a/b:1``; nothing of this machine's user counts."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    served = Served()
    for blob in (LAYOUT / "blobs/sha256").iterdir():
        served.registry.put_blob("a/b", blob.read_bytes())
    served.registry.put_manifest("a/b", "1", served.registry.content[DIGEST])
    yield served
    served.stop()


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--tls-verify=false"], 0),
        (["--tls-verify=0"], 0),
        (["--no-tls-verify"], 0),
        (["--tls-verify=true"], 9),
        (["--tls-verify"], 9),
        ([], 9),
        (["--tls-verify=maybe"], 2),
        (["--tls-verify=false", "--creds=a:b", "--no-creds"], 2),
        (["--tls-verify=false", "--password-stdin"], 2),
        (["--tls-verify=false", "--retry-delay=2x"], 2),
        (["--tls-verify=false", "--authfile=/nonexistent"], 0),
    ],
)
def test_options(options: list[str], code: int, cli: Cli, empty: Path, served: Served) -> None:
    for at in (2, 4):  # before the arguments and behind them
        command = ["oci", "pull", f"docker://{served.host}/a/b:1", "x", "--retry-times=0", "--progress=none"]
        run = cli.on(empty)(*command[:at], *options, *command[at:])
        assert run.code == code, run.err


FAULTS: list[tuple[str, Fault, int, str]] = [
    ("no image", Fault("manifests", status=404, times=-1), 3, "has no such thing"),
    ("no layer", Fault("GET .*/blobs", skip=1, status=404, times=-1), 3, "blob sha256:"),
    ("a damaged layer", Fault("GET .*/blobs", skip=1, flip=40, times=-1), 4, "expected digest"),
    ("a damaged manifest", Fault("GET .*/manifests", flip=40, times=-1), 4, "expected digest"),
    ("no access", Fault("", status=401, times=-1), 9, "is refused"),
    ("forbidden", Fault("", status=403, times=-1), 9, "is refused"),
    ("broken", Fault("", status=500, times=-1), 9, "answered 500"),
    ("cut", Fault("GET .*/blobs", cut=10, times=-1), 9, "the connection broke"),
]


@pytest.mark.parametrize(("fault", "code", "words"), [each[1:] for each in FAULTS], ids=[each[0] for each in FAULTS])
def test_exit_codes(fault: Fault, code: int, words: str, cli: Cli, empty: Path, served: Served) -> None:
    served.registry.faults = [fault]
    command = ["oci", "pull", f"docker://{served.host}/a/b:1", "x", "--tls-verify=false", "--retry-times=1"]
    cli.on(empty)(*command, "--retry-delay=1ms", "--progress=none").failed(code, words)
    assert cli.on(empty)("oci", "images").good().text == "No images found\n"


def test_a_time_limit(cli: Cli, empty: Path, served: Served) -> None:
    served.registry.faults = [Fault("", delay=60, times=-1)]
    command = ["oci", "pull", f"docker://{served.host}/a/b:1", "x", "--tls-verify=false", "--timeout=300ms"]
    cli.on(empty)(*command, "--progress=none").failed(9, "not done within 0.3 s")


def test_a_policy(cli: Cli, empty: Path, served: Served, tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "reject"}]}')
    command = ["oci", "pull", f"docker://{served.host}/a/b:1", "x", "--tls-verify=false", f"--policy={policy}"]
    cli.on(empty)(*command, "--progress=none").failed(4, "policy.json does not allow it")
    assert served.registry.seen == []
    cli.on(empty)(*command, "--insecure-policy", "--progress=none").good()


def test_what_commands_print(cli: Cli, empty: Path, served: Served, tmp_path: Path) -> None:
    plain, source = "--tls-verify=false", f"docker://{served.host}/a/b:1"
    size = len(served.registry.repository("a/b").manifests[DIGEST][1])
    expected: list[tuple[list[str], str]] = [
        (["tags", source], "1\n"),
        (["catalog", served.host], "a/b\n"),
        (["ping", served.host], f"{served.host}: registry/2.0\n"),
        (["ratelimit", source], "the registry tells no limit\n"),
        (["referrers", source], ""),
        (["manifest", "digest", source], f"{DIGEST}\n"),
        (["manifest", "head", source], f"digest {DIGEST}\ntype   {_OCI}\nsize   {size}\n"),
        (["blob", "head", f"docker://{served.host}/a/b@{DIGEST}"], f"{size}\n"),
    ]
    for command, printed in expected:
        assert cli("oci", *command, plain).good().text == printed, command
    for command in (["manifest", "get", source], ["blob", "get", f"docker://{served.host}/a/b@{DIGEST}"]):
        assert cli("oci", *command, plain).good().out == served.registry.content[DIGEST]
        cli("oci", *command, plain, "-o", tmp_path / "out").good()
        assert (tmp_path / "out").read_bytes() == served.registry.content[DIGEST]
    sides = ["--src-tls-verify=false", "--dest-tls-verify=false", source, f"docker://{served.host}/c/d:1"]
    assert cli("oci", "copy", *sides, "--json", "--dry-run").good().json["digest"] == DIGEST
    copied = cli("oci", "copy", plain, source, f"docker://{served.host}/c/d:2", "--json").good().json
    assert (copied["digest"], set(copied["blobs"].values())) == (DIGEST, {"mounted"})
    pulled = cli.on(empty)("oci", "pull", plain, "--keep-blobs", source, "x", "--json").good().json
    assert (pulled["source"], pulled["resumed"]) == (served.host, 0)
    pushed = (
        cli.on(empty)("oci", "push", plain, "x", f"docker://{served.host}/e/f:3", "--json", "--dry-run").good().json
    )
    assert {layer["how"] for layer in pushed["layers"]} <= {"kept", "plain"}
    assert "e/f" not in served.registry.repositories or not served.registry.repository("e/f").tags
    cli("oci", "blob", "get", plain, source).failed(2, "by its digest")
    cli("oci", "blob", "head", plain, f"docker://{served.host}/a/b@sha256:{64 * '0'}").failed(3, "blob not found")


_OCI = "application/vnd.oci.image.manifest.v1+json"


def test_login_is_tried_first_and_forgotten(cli: Cli, served: Served, tmp_path: Path) -> None:
    served.registry.users = {"user": "right"}
    plain, host = "--tls-verify=false", served.host
    cli("oci", "login", plain, "--username=user", "--password=wrong", host).failed(9, "is refused", "user")
    assert not (tmp_path / "run/containers/auth.json").exists()
    cli("oci", "login", plain, "--username=user", "--password=right", host).good()
    assert (tmp_path / "run/containers/auth.json").stat().st_mode & 0o777 == 0o600
    assert cli("oci", "tags", plain, f"docker://{host}/a/b").good().text == "1\n"
    cli("oci", "logout", host).good()
    cli("oci", "tags", plain, f"docker://{host}/a/b").failed(9, "no credentials were found in")


def test_gc_removes_kept_blobs_that_no_image_needs(cli: Cli, empty: Path, served: Served) -> None:
    on, kept = cli.on(empty), empty / "streams/refs/composefs-async/packed"
    on("oci", "pull", "--tls-verify=false", "--keep-blobs", f"docker://{served.host}/a/b:1", "x").good()
    number = len(list(kept.iterdir()))
    assert number > 0
    assert on("gc", "--json").good().json["blobs_released"] == 0
    on("oci", "untag", "x").good()
    assert f"note: would remove {number} blobs" in on("gc", "-n").good().err
    assert len(list(kept.iterdir())) == number
    assert f"note: removed {number} blobs" in on("gc").good().err
    assert list((empty / "streams").glob("oci-*")) == []
    assert on("gc").good().err == ""


def test_copy_pushes_an_image_of_the_repository(cli: Cli, empty: Path, served: Served, tmp_path: Path) -> None:
    on, target, plain = cli.on(empty), f"docker://{served.host}/e/f:3", "--dest-tls-verify=false"
    on("oci", "pull", "--tls-verify=false", "--keep-blobs", f"docker://{served.host}/a/b:1", "x").good()
    assert on("oci", "copy", plain, "x", target, "--json", "--dry-run").good().json["dry_run"] is True
    assert "e/f" not in served.registry.repositories or not served.registry.repository("e/f").tags
    digest_file = tmp_path / "digest"
    copied = on("oci", "copy", plain, "x", target, "--json", "--digestfile", digest_file).good().json
    assert (copied["manifest"], digest_file.read_text()) == (DIGEST, DIGEST)
    assert served.registry.repository("e/f").tags == {"3": DIGEST}
    on("oci", "copy", plain, "x", target, "--layers=gzip").failed(2, "see 'oci push'")
    on("oci", "copy", plain, "x", target, "--referrers").failed(2, "see 'oci push'")
    on("oci", "copy", plain, "x", "y", target).failed(2, "at a time")
    on("oci", "copy", plain, "oci-archive:x.tar", target).failed(2, "at a time")


def test_layers_of_which_only_what_is_missing_comes(cli: Cli, empty: Path, served: Served) -> None:
    files = {f"file{number:03}": content(number, 10_000) for number in range(160)}
    served.registry.put_blob("a/c", b"{}")
    for tag, changed in (("1", {}), ("2", {"file001": b"x" * 10_000})):
        ChunkedImage([make_chunked(tar_of({**files, **changed}))]).put(served.registry, tag, "a/c")
    on = cli.on(empty)

    def pull(tag: str, *options: str) -> Any:
        return on(
            "oci", "pull", f"docker://{served.host}/a/c:{tag}", tag, "--tls-verify=false", "--progress=none", *options
        )

    pull("1", "--no-image").good()
    whole = pull("2", "--no-partial", "--no-image", "--json").good().json
    assert (whole["partial"], whole["fetched"] > 1_500_000) == (0, True)
    on("oci", "untag", "2").good()
    on("gc").good()
    lines = pull("2", "--no-image").good().text.splitlines()
    assert lines[-1] == "partial  1 of 1 layers, verified by diff_id; the digest as shipped was not checked"
    on("oci", "untag", "2").good()
    on("gc").good()
    Path(empty, ".composefs-async/contents").unlink()
    assert on("oci", "index-contents", "1").good().text == "160 files of 1 can be found by their content\n"
    found = pull("2", "--no-image", "--json").good().json
    assert (found["partial"], found["fetched"] < 100_000) == (1, True)
    on("oci", "index-contents", "3").failed(3, "3")


def test_tags_are_copied(cli: Cli, served: Served, tmp_path: Path) -> None:
    registry, plain = served.registry, "--tls-verify=false"
    for tag in ("1.0", "1.1", "2.0"):
        registry.put_manifest("a/b", tag, registry.content[DIGEST])
    source, target = f"docker://{served.host}/a/b", f"docker://{served.host}/c/d"
    dry = cli("oci", "copy", plain, "--tag-pattern=1.*", "--dry-run", "--progress=none", source, target)
    assert dry.good().text == f"{DIGEST}  1.0\n{DIGEST}  1.1\n"
    assert not registry.repository("c/d").tags
    cli("oci", "copy", plain, "--tag-pattern=1.*", "--progress=none", source, target).good()
    assert registry.repository("c/d").tags == {"1.0": DIGEST, "1.1": DIGEST}
    found = cli("oci", "copy", plain, "--all-tags", source, f"oci:{tmp_path / 'layout'}", "--json").good().json["tags"]
    assert {tag: each["digest"] for tag, each in found.items()} == dict.fromkeys(["1", "1.0", "1.1", "2.0"], DIGEST)
    index = json.loads((tmp_path / "layout/index.json").read_bytes())
    assert sorted(each["annotations"]["org.opencontainers.image.ref.name"] for each in index["manifests"]) == sorted(
        found
    )


@pytest.mark.parametrize(
    ("source", "target", "options", "code", "words"),
    [
        ("a/b:1", "docker://{}/c/d", ["--all-tags"], 2, "have no tag"),
        ("a/b", "docker://{}/c/d:1", ["--all-tags"], 2, "have no tag"),
        ("a/b", "docker-archive:x.tar", ["--all-tags"], 2, "docker://HOST/NAME"),
        ("a/b", "docker://{}/c/d", ["--all-tags", "--digestfile=x"], 2, "exclude"),
        ("a/b", "docker://{}/c/d", ["--tag-pattern=x*"], 3, "no tag that fits 'x*'"),
        ("x/y", "docker://{}/c/d", ["--all-tags"], 3, "x/y"),
    ],
)
def test_tags_that_cannot_be_copied(
    source: str, target: str, options: list[str], code: int, words: str, cli: Cli, served: Served
) -> None:
    command = ["oci", "copy", "--tls-verify=false", "--progress=none", *options, f"docker://{served.host}/{source}"]
    cli(*command, target.format(served.host)).failed(code, words)
    assert "c/d" not in served.registry.repositories or not served.registry.repository("c/d").tags
