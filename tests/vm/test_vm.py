"""Runs the tests of guest_tests/ in the virtual machine, with and without the native code, and loses its power."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import composefs_async

from ..maintenance.crashing import Images

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
GUEST_CHECKOUT = "/srv/composefs-async"
PROGRAMS = ("cfsctl", "mkcomposefs", "composefs-info")
SYSTEM_DIRECTORIES = {Path("/usr/bin"), Path("/usr/sbin"), Path("/bin"), Path("/sbin")}

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def run() -> str:
    """The program that boots the machine, where that is possible."""
    path = str(HERE / "run")
    asked = subprocess.run(
        [sys.executable, path, "--possible"], capture_output=True, text=True, check=False, env=_environment()
    )
    if "Traceback" in asked.stderr:  # that is no reason to skip
        pytest.fail(asked.stderr, pytrace=False)
    if asked.returncode:
        pytest.skip(asked.stdout.strip() or asked.stderr.strip())
    return path


def _environment() -> dict[str, str]:
    """The harness imports from its own directory, which PYTHONSAFEPATH forbids."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}


def _programs() -> list[str]:
    """Options that take the directories of the programs to compare with into the machine."""
    found = [shutil.which(name) for name in PROGRAMS]
    directories = {Path(path).absolute().parent for path in found if path}
    return [f"--path={directory}" for directory in sorted(directories - SYSTEM_DIRECTORIES)]


def _package() -> list[str]:
    """Options that take composefs_async along, where it is not installed in the virtual environment."""
    directory = Path(composefs_async.__path__[0]).resolve()
    if directory.is_relative_to(sys.prefix):
        return []
    return [f"--copy={directory}", f"--env=PYTHONPATH={directory.parent}"]


@pytest.mark.parametrize("native", ["require", "off"])
def test_guest_tests_pass(run: str, native: str) -> None:
    if native == "require" and importlib.util.find_spec("composefs_async._native._core") is None:
        pytest.skip("the native code was not built")
    options = [f"--python={sys.prefix}", f"--cwd={GUEST_CHECKOUT}", "--timeout=1500", "--verbose"]
    options += [f"--copy={CHECKOUT / name}:{GUEST_CHECKOUT}/{name}" for name in ("pyproject.toml", "tests")]
    options += [*_package(), *_programs()]
    options += [f"--env=COMPOSEFS_ASYNC_NATIVE={native}", "--env=COMPOSEFS_ASYNC_GUEST=1"]
    pytest_options = ["-p", "no:cacheprovider", "--basetemp=/data/pytest", "--color=no", "--durations=5"]
    command = ["python", "-P", "-B", "-m", "pytest", *pytest_options, "tests/vm/guest_tests"]
    done = subprocess.run(
        [sys.executable, run, *options, "--", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=_environment(),
    )
    print(done.stdout)
    if done.returncode:
        pytest.fail(f"status {done.returncode}; output from the machine:\n{done.stdout}", pytrace=False)


def test_a_power_loss_leaves_names_that_are_whole(run: str, disk_path: Path) -> None:
    """At each flush of a pull in the place of another, a collection and a repair; see power_loss.py."""
    images = Images(disk_path / "images").directory
    script = f"python -P -B {GUEST_CHECKOUT}/tests/vm/power_loss.py"
    options = [f"--python={sys.prefix}", "--size=64M", "--from=pulled", "--to=repaired", "--verbose"]
    options += [f"--copy={CHECKOUT / 'tests/maintenance'}:{GUEST_CHECKOUT}/tests/maintenance"]
    options += [f"--copy={HERE / 'power_loss.py'}:{GUEST_CHECKOUT}/tests/vm/power_loss.py", f"--copy={images}"]
    package = Path(composefs_async.__path__[0]).resolve()
    if not package.is_relative_to(sys.prefix):
        options.append(f"--copy={package}")
    options.append(f"--env=PYTHONPATH={package.parent}:{GUEST_CHECKOUT}/tests")
    command = [
        str(HERE / "crash"),
        *options,
        f"--check={script} check {images}",
        "--",
        *f"{script} work {images}".split(),
    ]
    done = subprocess.run(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=_environment(),
    )
    print(done.stdout)
    if done.returncode:
        pytest.fail(f"status {done.returncode}; output from the machine:\n{done.stdout}", pytrace=False)
    assert done.stdout.count("pass entry") > 10


def test_a_machine_boots_an_image(run: str) -> None:
    """Prepared in one machine, booted in the next, with verity required; see boot."""
    for program in ("gcc", "dpkg-deb"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not on PATH")
    done = subprocess.run(
        [sys.executable, str(HERE / "boot"), f"--python={sys.prefix}", *_package(), "--verbose"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=_environment(),
    )
    print(done.stdout)
    if done.returncode:
        pytest.fail(f"status {done.returncode}; output:\n{done.stdout}", pytrace=False)
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines() if line.isprintable() and ": " in line)
    found = {name: said.get(name) for name in ("SYSTEM", "ROOT", "GOOD", "TAMPERED")}
    assert found == {
        "SYSTEM": "demo 7",
        "ROOT": "verity=require",
        "GOOD": hashlib.sha256(b"good " * 1000).hexdigest(),
        "TAMPERED": "refused",
    }
    assert "READ-ONLY" in done.stdout.splitlines()
    assert "NOT EMPTIED" not in done.stdout
