"""``--bootable``, and the global options of cfsctl before a command."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .conftest import Cli


def _boot_fixtures() -> Any:
    """The makers of B1 and B2."""
    place = Path(__file__).parent.parent / "boot" / "conftest.py"
    spec = importlib.util.spec_from_file_location("composefs_async_boot_fixtures", place)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.get(spec.name)
    if module is None:
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


boot = _boot_fixtures()

B1_IDS = {
    ("sha256", 1): "8931c60a67cd196968759bede6c2ad1392710963e6f851380dcd4e515e860cc2",
    ("sha256", 2): "6841157858477e129c5b697c1b1bc34b174aa4dc368495cde670b8e0eb49ba37",
    ("sha512", 1): "4943f61396f23c1e2abdf44507e54da0246f6a2a8260c3a79560cba5152092504"
    "dee51b927a5fa6cffd4291393ac91c1db7b3d501aff5944af8d783937f59a92",
    ("sha512", 2): "cafffb5f7a9703e582a0d3a4a7f79b0f8d1dc5a99785519b7c9bb92599935b46e"
    "629c370ed0f2b43c06a3ae723e8c4d0fc56b69119527c859689a78de4c36403",
}
B2_ID = "51d3acb688cac5c07d246ba4b557217df434490a646eca9a6bf8289dc41eab02"


@pytest.fixture
def b1(tmp_path: Path) -> str:
    reference: str = boot.write_layout(tmp_path / "b1", boot.layer_of(dict(boot.B1_FILES)))
    return reference


@pytest.fixture
def b2(tmp_path: Path) -> Path:
    made: Path = boot.make_b2(tmp_path / "b2")
    return made


def repository(tmp_path: Path, algorithm: str, version: int) -> Path:
    from composefs_async import Algorithm, Repository

    tmp_path.mkdir(exist_ok=True)
    path = tmp_path / f"{algorithm}-{version}"
    Repository.init(path, algorithm=Algorithm(algorithm), erofs_version=version, insecure=True).close()
    return path


def test_options_of_cfsctl_stand_before_the_command(cli: Cli, b2: Path, empty: Path) -> None:
    options = ("--no-repo", "--no-upgrade", "--hash", "sha256", "--erofs-version", "2")
    assert cli(*options, "compute-id", "--bootable", b2).good().text == f"{B2_ID}\n"
    dump = cli(*options, "create-dumpfile", "--bootable", b2).good().out
    assert dump == (boot.VECTORS / "b2.dump").read_bytes()
    cli("--no-repo", "gc").failed(2, "--no-repo")
    cli("--no-repo", "--repo", empty, "compute-id", b2).failed(2, "--no-repo")


def test_the_version_before_the_command_counts_for_all_images(cli: Cli, b2: Path, empty: Path) -> None:
    expected = cli("--no-repo", "--erofs-version", "2", "compute-id", "--bootable", b2).good().text.strip()
    on = cli.on(empty)
    assert on("--erofs-version", "2", "create-image", "--bootable", b2, "name").good().text == f"sha512:{expected}\n"
    assert on("--erofs-version", "2", "compute-id", "--bootable", b2).good().text.strip() == expected
    assert on("compute-id", "--bootable", "--erofs-version", "2", b2).good().text.strip() == expected
    on("fsck").good()


def test_a_symbolic_link_in_the_place_of_the_config_is_refused_everywhere(
    cli: Cli, b2: Path, empty: Path, tmp_path: Path
) -> None:
    config = b2 / "etc/selinux/config"
    config.rename(tmp_path / "config")
    config.symlink_to(tmp_path / "config")
    on, words = cli.on(empty), ("/etc/selinux/config", "symbolic link, which is not followed")
    cli("--no-repo", "compute-id", "--bootable", b2).failed(5, *words)
    on("create-image", "--bootable", b2, "name").failed(5, *words)
    files = {name: content for name, content in boot.B1_FILES.items() if name != "boot/grub.cfg"}
    layer = boot.layer_of({**files, "etc/selinux/config": "/etc/hostname"})
    reference = boot.write_layout(tmp_path / "linked", layer)
    on("oci", "pull", reference, "linked").good()
    for command in (("dump",), ("compute-id",)):
        on("oci", *command, "--bootable", "linked").failed(5, *words)
    run = on("oci", "pull", "--bootable", "--progress", "none", reference, "linked")
    assert (run.code, words[1] in run.err) == (5, True)


@pytest.mark.parametrize(("algorithm", "version"), B1_IDS)
def test_b1_has_the_digests_of_cfsctl(cli: Cli, tmp_path: Path, b1: str, algorithm: str, version: int) -> None:
    on = cli.on(repository(tmp_path, algorithm, version))
    expected = B1_IDS[algorithm, version]
    printed = on("oci", "pull", "--bootable", b1, "demo").good().text.splitlines()
    assert printed[-1] == f"Boot image: {expected}"
    # What is printed is the manifest's stream as it stays.
    assert on("oci", "pull", "--bootable", b1, "demo").good().text.splitlines()[2] == printed[2]
    assert on("oci", "compute-id", "--bootable", "demo").good().text.strip() == expected
    assert on("oci", "inspect", "demo").good().json["composefs_boot_erofs"] == expected
    assert on("oci", "pull", "--bootable", "--json", b1, "demo").good().json["boot_image"] == expected
    other = 3 - version
    computed = on("--erofs-version", other, "oci", "compute-id", "--bootable", "demo").good().text.strip()
    assert computed == B1_IDS[algorithm, other]
    assert on("gc").good().code == 0
    on("oci", "fsck").good()
    assert on("oci", "inspect", "demo").good().json["composefs_boot_erofs"] == expected


def test_a_dump_of_a_bootable_image(cli: Cli, tmp_path: Path, b1: str) -> None:
    on = cli.on(repository(tmp_path, "sha256", 1))
    on("oci", "pull", b1, "demo").good()
    lines = on("oci", "dump", "--bootable", "demo").good().text.splitlines()
    assert [line.split()[0] for line in lines if line.startswith(("/boot", "/sysroot"))] == ["/boot", "/sysroot"]
    assert lines[1].split()[:8] == ["/boot", "0", "40755", "2", "0", "0", "0", "1700000000.0"]


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        (B1_IDS["sha256", 1], "allowlist-only, format-version=V1"),
        (B1_IDS["sha256", 2], "allowlist-only, format-version=V2"),
    ],
)
def test_an_expected_digest_is_found_and_kept(cli: Cli, tmp_path: Path, b1: str, expected: str, text: str) -> None:
    on = cli.on(repository(tmp_path, "sha256", 1))
    run = on("oci", "pull", "--bootable", "--expected-digest", expected, b1, "demo").good()
    assert run.text.splitlines()[-1] == f"Boot image: {expected} (xattr-mode={text})"
    on("gc").good()
    on("image-objects", expected).good()
    again = on("oci", "pull", "--bootable", "--expected-digest", expected, b1, "demo").good()
    assert again.text.splitlines()[-1] == run.text.splitlines()[-1]


def test_an_expected_digest_that_nothing_has(cli: Cli, tmp_path: Path, b1: str) -> None:
    on = cli.on(repository(tmp_path, "sha256", 1))
    wrong = "0" * 64
    run = on("oci", "pull", "--progress", "none", "--bootable", "--expected-digest", wrong, b1, "demo")
    assert (run.code, wrong in run.err, "were tried" in run.err) == (5, True, True)
    on("oci", "pull", "--expected-digest", wrong, b1, "demo").failed(2, "needs --bootable")
    run = on("oci", "pull", "--progress", "none", "--bootable", "--expected-digest", "0" * 128, b1, "demo")
    assert (run.code, "sha512" in run.err) == (6, True)


def test_mounting_a_bootable_image_that_was_never_made(cli: Cli, tmp_path: Path, b1: str) -> None:
    on = cli.on(repository(tmp_path, "sha256", 1))
    on("oci", "pull", b1, "demo").good()
    on("oci", "mount", "--bootable", "demo", tmp_path).failed(3, "bootable", "pull --bootable")


@pytest.mark.parametrize("missing", ["boot", "sysroot"])
def test_an_image_without_a_directory_that_booting_needs(cli: Cli, tmp_path: Path, missing: str) -> None:
    on = cli.on(repository(tmp_path, "sha256", 1))
    files = {name: content for name, content in boot.B1_FILES.items() if not name.startswith("boot/")}
    layer = boot.layer_of(files, tuple(name for name in ("boot", "sysroot", "run") if name != missing))
    run = on("oci", "pull", "--progress", "none", "--bootable", boot.write_layout(tmp_path / "layout", layer), "demo")
    assert (run.code, f"/{missing}: there is no such directory" in run.err) == (5, True)


def test_the_kernel_argument_of_a_directory(cli: Cli, b2: Path, empty: Path) -> None:
    computed = cli("--no-repo", "--hash", "sha256", "compute-id", "--bootable", b2).good().text.strip()
    run = cli("--no-repo", "--hash", "sha256", "compute-karg", b2).good()
    assert run.text == f"composefs.digest=v1-sha256-12:{computed}\n"
    run = cli("--no-repo", "--hash", "sha256", "--insecure", "--erofs-version", "2", "compute-karg", b2).good()
    assert run.text == f"composefs=?{B2_ID}\n"
    run = cli("--no-repo", "--hash", "sha256", "compute-karg", "--insecure", "--form", "both", b2).good()
    assert run.text == f"composefs.digest=?v1-sha256-12:{computed} composefs=?{computed}\n"
    run = cli.on(empty)("compute-karg", b2).good()
    assert run.text.startswith("composefs.digest=v1-sha512-12:")
    cli("compute-karg", "/").failed(5, "running system")
    cli("--erofs-version", "2", "compute-karg", "--form", "both", b2).failed(5, "composefs= alone")


def test_times_can_be_clamped(cli: Cli, b2: Path, tmp_path: Path) -> None:
    other = boot.make_b2(tmp_path / "other")
    (other / "usr").touch()
    command = ("--no-repo", "compute-id", "--bootable")
    first, second = (cli(*command, path).good().text for path in (b2, other))
    assert first != second
    first, second = (cli(*command, "--clamp-mtime", 1_600_000_000, path).good().text for path in (b2, other))
    assert first == second
    dump = cli("--no-repo", "create-dumpfile", "--clamp-mtime", 1_700_000_100, b2).good().text.splitlines()
    times = {line.split()[0]: line.split()[7] for line in dump}
    assert (times["/usr"], times["/opt"]) == ("1700000100.0", "1700000000.500000000")


@pytest.mark.parametrize("options", [("--no-repo", "--hash", "sha256"), ()])
def test_an_image_directory_needs_no_repository(
    cli: Cli, tmp_path: Path, b1: str, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    on = cli if options else cli.on(repository(tmp_path, "sha256", 1))
    computed = on(*options, "oci", "compute-id", "--bootable", b1).good().text.strip()
    assert computed == B1_IDS["sha256", 1]
    computed = on(*options, "oci", "compute-id", "--bootable", "--erofs-version", "2", b1).good().text.strip()
    assert computed == B1_IDS["sha256", 2]
    assert list((tmp_path / "tmp").iterdir()) == []
    if not options:  # a tag of that name comes first
        other = boot.write_layout(tmp_path / "other", boot.layer_of({**boot.B1_FILES, "etc/hostname": b"other"}))
        on("oci", "pull", other, b1).good()
        assert on("oci", "compute-id", "--bootable", b1).good().text.strip() != B1_IDS["sha256", 1]
    on(*options, "oci", "compute-id", "oci:/nowhere").failed(3, "/nowhere")


def test_boot_check_and_explain(cli: Cli, tmp_path: Path, b1: str, b2: Path) -> None:
    on = cli.on(repository(tmp_path, "sha256", 1))
    on("oci", "pull", "--bootable", b1, "demo").good()
    entry = tmp_path / "x.conf"
    entry.write_text(f"options composefs=?{B1_IDS['sha256', 1]}\n")
    run = on("boot", "check", entry, "--against", "oci:demo").good()
    assert run.text == f"{entry}: ok, boots {B1_IDS['sha256', 1]}\n"
    found = on("boot", "check", entry, "--against", b2, "--json")
    assert (found.code, found.json["ok"], found.json["checks"][0]["image"]) == (1, False, B1_IDS["sha256", 1])
    assert "the first difference is at /, mtime_ns" in found.json["checks"][0]["problems"][0]
    entry.write_text("options quiet\n")
    run = on("boot", "check", entry)
    assert (run.code, run.text.splitlines()[1]) == (1, "  problem: no kernel argument names an image")
    run = on("explain", "--bootable", "oci:demo", "--expected-digest", B1_IDS["sha256", 2]).good()
    assert run.text == "the image has layout 2, not 1 (xattr-mode=allowlist-only, format-version=V2)\n"
    run = on("explain", "--bootable", "oci:demo", "--expected-digest", "0" * 64, "--json")
    assert (run.code, run.json["variant"], run.json["differences"]) == (1, None, [])
    dump = tmp_path / "b2.dump"
    text = (boot.VECTORS / "b2.dump").read_bytes()
    dump.write_bytes(text.replace(b"security.selinux=u:o:opt:s0", b"security.selinux=u:o:no:s0"))
    assert cli("diff", "--bootable", b2, boot.VECTORS / "b2.dump").good().text == ""
    run = cli("--hash", "sha256", "explain", "--bootable", b2, dump)
    assert (run.code, "/opt/d, xattr security.selinux" in run.text, "file_contexts, line 5: /opt/.*" in run.text) == (
        1, True, True,
    )  # fmt: skip
    run = cli("--hash", "sha256", "explain", "--bootable", b2, boot.VECTORS / "b2.dump").good()
    assert run.text == "the images are equal\n"
    cli("explain", "--bootable", dump, dump).failed(2, "only a directory or tag:NAME")


def test_preparing_a_boot_and_taking_it_back(cli: Cli, tmp_path: Path, b1: str) -> None:
    (tmp_path / "machine").mkdir()
    on = cli.on(repository(tmp_path / "machine", "sha256", 1))
    bootdir = tmp_path / "bootdir"
    bootdir.mkdir()
    pulled = on("oci", "pull", b1, "demo").good().text
    command = ("oci", "prepare-boot", "--bootdir", bootdir, "--cmdline", "rw", "demo")
    image = B1_IDS["sha256", 1]
    dry = on(*command, "-n").good().text.splitlines()
    assert dry[0] == "Would write 6.1.0-demo/vmlinuz, 5.86 KiB"
    assert list(bootdir.iterdir()) == []
    on("oci", "prepare-boot", "--bootdir", bootdir, "demo", "0" * 64).failed(4, "manifest of demo")
    verity = next(line.split()[1] for line in pulled.splitlines() if line.startswith("verity"))
    found = on(*command, verity, "--json").good().json
    assert (found["image"], found["reference"]) == (image, f"images/boot/{image}")
    assert found["state"] == str(tmp_path / "machine/state/deploy" / image)
    assert [file["path"] for file in found["files"] if file["written"]] == [file["path"] for file in found["files"]]
    assert on(*command).good().text.splitlines()[0] == "Kept 6.1.0-demo/vmlinuz, 5.86 KiB (there already)"
    assert f"images/boot/{image}  {image}" in on("refs", "list").good().text
    on("boot", "check", bootdir / "loader/entries/6.1.0-demo.conf", "--against", "oci:demo").good()
    back = on("oci", "unprepare-boot", "--bootdir", bootdir, "demo").good().text.splitlines()
    assert back[0] == "Removed loader/entries/6.1.0-demo.conf"
    assert back[-1] == f"Removed images/boot/{image}"
    assert on("oci", "unprepare-boot", "--bootdir", bootdir, "demo", "--json").good().json == {
        "image": image,
        "removed": [],
        "reference": False,
        "dry_run": False,
    }


def test_copying_from_another_repository(cli: Cli, tmp_path: Path, b1: str) -> None:
    source, other = repository(tmp_path, "sha256", 1), repository(tmp_path, "sha512", 2)
    target = repository(tmp_path / "target", "sha256", 2)
    cli.on(source)("oci", "pull", "--bootable", b1, "demo").good()
    run = cli.on(target)("oci", "copy", "--from", source, "demo").good()
    assert run.text.splitlines()[3] == "tagged   demo"
    found = cli.on(other)("oci", "copy", "--from", source, "--name", "x/y", "demo", "--json").good().json
    assert found["tagged"] == "x/y"
    assert cli.on(other)("oci", "images", "--json").good().json["images"][0]["name"] == "x/y"
    cli.on(target)("oci", "copy", "--from", source, "demo", "oci:x").failed(2, "excludes DESTINATION")
    cli.on(target)("oci", "copy", "--zerocopy", "oci:a", "oci:x").failed(2, "need --from")
    cli.on(target)("oci", "copy", "oci:a").failed(2, "DESTINATION")
    cli.on(target)("oci", "copy", "--from", source, "nothing").failed(3, "nothing")


def test_seals_are_checked_by_a_pull(cli: Cli, tmp_path: Path, b1: str) -> None:
    on, place = cli.on(repository(tmp_path, "sha256", 2)), tmp_path / "b1"
    other = boot.write_layout(tmp_path / "other", boot.layer_of({**boot.B1_FILES, "etc/hostname": b"other"}))
    on("oci", "pull", other, "demo").good()
    before = on("oci", "images", "--json").good().json["images"]
    sealed = cli("--hash", "sha256", "oci", "seal", place, "demo", "--json").good().json
    name = "composefs.merged.bootable.erofs.v1.fsverity-sha256-12"
    assert sealed["annotations"][name] == B1_IDS["sha256", 1]
    blob = place / "blobs/sha256" / sealed["manifest"][7:]
    wrong = blob.read_bytes().replace(B1_IDS["sha256", 1].encode(), b"0" * 64)
    digits = hashlib.sha256(wrong).hexdigest()
    (place / "blobs/sha256" / digits).write_bytes(wrong)
    index = (place / "index.json").read_text()
    (place / "index.json").write_text(index.replace(sealed["manifest"][7:], digits))
    run = on("oci", "pull", "--progress", "none", b1, "demo")
    assert (run.code, f"seal {name}" in run.err) == (4, True)
    assert on("oci", "images", "--json").good().json["images"] == before
    (place / "index.json").write_text(index)
    lines = on("oci", "pull", b1, "demo").good().text.splitlines()
    assert [line for line in lines if line.startswith("seal")] == [
        "seal     composefs.config.fsverity-sha256-12 holds",
        f"seal     {name} holds",
        "seal     composefs.merged.erofs.v1.fsverity-sha256-12 holds",
    ]
    cli("oci", "seal", place, "demo", "--key", blob).failed(2, "--cert")
    cli("oci", "seal", place, "nothing").failed(3, "nothing")


def test_whoever_makes_an_image_is_told_once_of_labels_that_restorecon_would_change(cli: Cli, b2: Path) -> None:
    command = ("--no-repo", "--hash", "sha256", "compute-id", "--bootable", b2)
    told = cli(*command).good().err.splitlines()
    assert [each.split(", such as")[0] for each in told] == [
        "note: restorecon would change the labels of 3 files in this image"
    ]
    assert cli("--quiet", *command).good().err == ""


def test_labels_can_be_looked_at(cli: Cli, b2: Path, tmp_path: Path, b1: str) -> None:
    lines = cli("boot", "labels", b2).good().text.splitlines()
    assert lines[0] == "u:o:root:s0 /"
    assert {"u:o:cc:s0 /a/sub/f", "u:o:home:s0 /srv/home/in/f", "u:o:homedirs:s0 /home/u/x"} <= set(lines)
    run = cli("boot", "labels", "--restorecon", b2, "--json")
    found = {each["path"]: (each["label"], each["restorecon"]) for each in run.json["files"]}
    assert run.code == 1
    assert found["/home/u/x"] == ("u:o:homedirs:s0", "u:o:local:s0")
    assert found["/opt/exact"] == ("u:o:opt:s0", "u:o:exact:s0")
    assert found["/nn/none"] == ("u:o:notq:s0", None)
    on = cli.on(repository(tmp_path, "sha256", 1))
    on("oci", "pull", b1, "demo").good()
    assert on("boot", "labels", "oci:demo").good().text == ""
    assert on("boot", "labels", "--restorecon", "oci:demo", "--json").good().json == {"policy": False, "files": []}
