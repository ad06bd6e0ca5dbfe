"""``oci pull``: what it prints, and the progress beside it."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from composefs_async.oci.layout_writer import OciLayoutWriter

LAYOUTS = Path(__file__).parent.parent / "vectors" / "layouts"
BASIC = "sha256:58cc8208b729c9aa23e4ffc045b6eb3176d5b01c5fb2b8fe1877cbf311c5a495"

RESULT = """\
manifest sha256:8e66440a93d68590e713aa309c3bc6651670904597e64480b0acccc87cb89f21
config   sha256:f307ac2405c186e69cbfc6bd14e3b10d6c3e9e8c6156e2b9151d541ff2b18d71
verity   ad1aeed6e016f0d2c7d4fff47d251ea53d2b6e7f5791dd9d74d4b8cecfe83140\
f06597f89318da1419c3c0635a11df915812c86a3d5ad7a051fd443cce2e7193
tagged   {tag}
objects  11 new + 0 already present objects; 87.34 KiB stored, 32.66 KiB inlined
"""


def test_image_is_told_as_cfsctl_tells_it(empty: Path, cli: Any) -> None:
    source = f"oci:{LAYOUTS}/basic:latest"
    found = cli.on(empty)("oci", "pull", source, "--platform", "linux/amd64", "--progress", "none").good()
    assert (found.text, found.err) == (RESULT.format(tag=source), "")


def test_pulling_again_says_that_all_is_there(pulled: Path, cli: Any) -> None:
    source = f"oci:{LAYOUTS}/basic:latest"
    found = cli.on(pulled)("oci", "pull", source, "basic", "--json", "--platform", "linux/amd64").good()
    assert found.json["stats"]["layers_present"] == 2
    assert found.json["layers"][0]["diff_id"] == BASIC
    assert sorted(found.err.splitlines()) == [
        f"{source}: 2 layers, 88.14 KiB",
        "sha256:58cc8208b729: present",
        "sha256:a5fc8bdfb062: present",
        "tagged basic",
    ]


def test_damaged_image_is_refused_and_not_tagged(empty: Path, tmp_path: Path, cli: Any) -> None:
    shutil.copytree(LAYOUTS / "basic", tmp_path / "image")
    largest = max((tmp_path / "image/blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    found = cli.on(empty)("oci", "pull", f"oci:{tmp_path}/image", "--platform", "linux/amd64", "--progress", "none")
    found.failed(5, f"layer {BASIC}: damaged gzip member", "offset")
    assert cli.on(empty)("oci", "images").good().text == "No images found\n"


@pytest.mark.parametrize(
    ("image", "code", "words"),
    [
        ("oci:/does/not/exist", 3, ["/does/not/exist", "no such directory"]),
        (f"oci:{LAYOUTS}/basic:nope", 3, ["nope", "latest"]),
        (f"oci:{LAYOUTS}/basic@{BASIC}", 3, [BASIC.removeprefix("sha256:"), "missing"]),
        (f"oci:{LAYOUTS}", 5, ["not an OCI image directory"]),
    ],
)
def test_image_that_is_not_there_is_named(image: str, code: int, words: list[str], empty: Path, cli: Any) -> None:
    cli.on(empty)("oci", "pull", image, "--progress", "none").failed(code, *words)
    assert not (empty / "streams").exists()


def test_platform_that_is_not_there_is_answered_with_those_that_are(empty: Path, cli: Any) -> None:
    found = cli.on(empty)("oci", "pull", f"oci:{LAYOUTS}/index", "--platform", "linux/mips", "--progress", "none")
    found.failed(3, "linux/mips", "linux/arm64", "linux/s390x")
    cli.on(empty)("oci", "pull", f"oci:{LAYOUTS}/index", "x", "--platform", "linux/s390x").good()
    (image,) = cli.on(empty)("oci", "images", "--json").json["images"]
    assert image["architecture"] == "s390x"


@pytest.mark.parametrize("kind", ["auto", "bars", "plain", "json", "none"])
def test_standard_output_is_the_same_whatever_progress_is_shown(kind: str, empty: Path, cli: Any) -> None:
    found = cli.on(empty)("oci", "pull", f"oci:{LAYOUTS}/one", "x", "--json", "--progress", kind).good()
    assert list(found.json) == ["manifest", "config", "verity", "tagged", "image", "layers", "stats"]
    assert found.json["tagged"] == "x"
    assert (found.err == "") is (kind == "none")


def test_plain_progress_ends_with_the_tag(empty: Path, cli: Any) -> None:
    lines = cli.on(empty)("oci", "pull", f"oci:{LAYOUTS}/basic", "x", "--progress", "plain").good().err.splitlines()
    assert lines[0].startswith(f"oci:{LAYOUTS}/basic: 2 layer")
    assert sorted(line.split(":")[1][:12] for line in lines[1:-2]) == ["58cc8208b729", "a5fc8bdfb062"]
    assert lines[-2].startswith("image 71c03a06a5c9: EROFS version 1, ")
    assert lines[-1] == "tagged x"


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_interrupted_pull_leaves_objects_and_a_lease_and_is_gone_on_with(
    loop: str, empty: Path, tmp_path: Path, cli: Any
) -> None:
    if loop != "asyncio" and importlib.util.find_spec(loop) is None:
        pytest.skip(f"{loop} is not installed")
    writer = OciLayoutWriter(tmp_path / "image")
    with writer.layer("none") as sink:
        for number in range(64):
            file = tarfile.TarInfo(str(number))
            file.size = 1 << 20
            sink.write(file.tobuf() + random.Random(number).randbytes(1 << 20))
    writer.add_image([sink.layer])
    command = [sys.executable, "-W", "error", "-m", "composefs_async", "--loop", loop, "--repo", str(empty)]
    command += ["oci", "pull", f"oci:{tmp_path}/image", "x", "--progress", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while json.loads(process.stderr.readline())["event"] != "layer-started":
            pass
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.splitlines()[-1]) == (130, "", "composefs-async: interrupted")
    left = [str(path.relative_to(empty)) for path in empty.rglob("*") if not path.is_dir()]
    others = [name for name in left if not name.startswith("objects/") or "/." in name]
    assert sorted(name.partition(":")[0] for name in others) == [".composefs-async/leases/sha256", "meta.json"]
    assert "tagged   x" in cli.on(empty)("oci", "pull", f"oci:{tmp_path}/image", "x").good().text
    assert cli.on(empty)("leases").good().text == ""


@pytest.mark.parametrize("kind", ["auto", "bars", "json"])
def test_progress_that_nobody_can_see_does_not_matter(kind: str, empty: Path) -> None:
    arguments = f'--repo "{empty}" oci pull "oci:{LAYOUTS}/one" x --progress={kind}'
    script = f'exec "{sys.executable}" -W error -m composefs_async {arguments} 2>&-'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[3]) == (0, "tagged   x")
