"""COMPOSEFS_ASYNC_NATIVE, in processes of its own because it is read at import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from composefs_async import _native

from ..conftest import preloading

REPORT = "import composefs_async._native as n, composefs_async.fsverity as f; print(n.BACKEND, f.digest.__module__)"
# As if it had not been built.
WITHOUT = "import sys; sys.modules['composefs_async._native._core'] = None; "


def python(code: str, policy: str | None, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = preloading() | ({} if policy is None else {"COMPOSEFS_ASYNC_NATIVE": policy}) | environment
    return subprocess.run(
        [sys.executable, "-P", "-c", code], env=variables, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("policy", [None, "", "auto", "require"])
def test_native_code_is_used_where_it_was_built(policy: str | None) -> None:
    if _native.BACKEND == "python":
        pytest.skip("the native module was not built, or is switched off")
    assert python(REPORT, policy).stdout.split() == ["native", "composefs_async.fsverity._compiled"]


@pytest.mark.parametrize(("code", "policy"), [(REPORT, "off"), (WITHOUT + REPORT, "auto"), (WITHOUT + REPORT, None)])
def test_twin_is_used_when_switched_off_or_not_built(code: str, policy: str | None) -> None:
    assert python(code, policy).stdout.split() == ["python", "composefs_async.fsverity._python"]


def test_require_fails_without_native_code() -> None:
    done = python(WITHOUT + REPORT, "require")
    assert done.returncode == 1
    assert "ImportError: COMPOSEFS_ASYNC_NATIVE is 'require' but the native module cannot be loaded" in done.stderr


def test_unknown_policy_is_refused() -> None:
    done = python(REPORT, "maybe")
    assert done.returncode == 1
    assert "ImportError: COMPOSEFS_ASYNC_NATIVE is 'maybe'; it can be auto, off, require" in done.stderr


def test_features_name_hashlib_without_native_code() -> None:
    code = "import composefs_async._native as n; print(n.FEATURES)"
    assert python(code, "off").stdout.strip() == "{'sha256': ('hashlib',), 'sha512': ('hashlib',)}"


@pytest.mark.parametrize(
    ("code", "policy", "told"),
    [
        ("", "off", "switched off by COMPOSEFS_ASYNC_NATIVE=off"),
        (WITHOUT, None, "pip install --force-reinstall --no-deps --no-cache-dir composefs-async"),
    ],
)
@pytest.mark.parametrize("command", ["doctor", "demo"])
def test_commands_tell_that_native_code_is_missing(code: str, policy: str | None, told: str, command: str) -> None:
    done = python(
        f"{code}import sys; sys.argv = ['composefs-async', '{command}']; from composefs_async.cli import main; main()",
        policy,
    )
    assert (done.returncode, done.stdout.count("native code is"), told in done.stdout) == (0, 1, True), done.stderr
