"""Builds the optional native module; everything else is in pyproject.toml."""

import platform
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel

SOURCES = Path("composefs_async/_native")
# The limited API makes one wheel for all versions from 3.11; the free-threaded build does not have it.
LIMITED = platform.python_implementation() == "CPython" and not sysconfig.get_config_var("Py_GIL_DISABLED")


class Wheel(bdist_wheel):
    """A wheel whose tag tells the truth: without the native module it is one for every platform.

    The extension is optional, so a build without a compiler succeeds.  Tagged like a native wheel, its result would
    be cached and installed in place of one wherever a compiler is at hand later.
    """

    def run(self) -> None:
        self.run_command("build")
        self.skip_build = True
        if not all(Path(output).exists() for output in self.get_finalized_command("build_ext").get_outputs()):
            sys.stderr.write("composefs-async: built without native code, which makes it about half as fast\n")
            self.distribution.ext_modules = []
            self.root_is_pure = True
            self.plat_name_supplied = False
        made = Path(self.get_finalized_command("build").build_temp) / "share"
        self.distribution.data_files = _shared(made, self.distribution.get_version())
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", "any") if self.root_is_pure else super().get_tag()


def _shared(made: Path, version: str) -> list[tuple[str, list[str]]]:
    """Manual pages and what shells complete, made from the commands themselves: places, and files below *made*."""
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        from composefs_async.cli.app import app
        from composefs_async.cli.manual import pages
        from composefs_async.cli.topics import script
    finally:
        del sys.path[0]
    contents = {f"share/man/man1/{name}": text for name, text in pages(app, version).items()}
    contents["share/bash-completion/completions/composefs-async"] = script("bash")
    contents["share/zsh/site-functions/_composefs-async"] = script("zsh")
    contents["share/fish/vendor_completions.d/composefs-async.fish"] = script("fish")
    found: dict[str, list[str]] = {}
    for place, text in contents.items():
        path = made / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        found.setdefault(str(Path(place).parent), []).append(str(path))
    return list(found.items())


setup(
    cmdclass={"bdist_wheel": Wheel},
    ext_modules=[
        Extension(
            "composefs_async._native._core",
            sources=sorted(str(path) for path in SOURCES.glob("*.c")),
            depends=sorted(str(path) for path in SOURCES.glob("*.h")),
            define_macros=[("_GNU_SOURCE", None), *([("Py_LIMITED_API", "0x030B0000")] if LIMITED else [])],
            # -g0: the flags of most interpreters ask for debugging information, seven times the size of the code.
            extra_compile_args=["-std=gnu11", "-O3", "-g0", "-Wall", "-Wextra", "-fvisibility=hidden"],
            extra_link_args=["-Wl,-s"],
            py_limited_api=LIMITED,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED else {},
)
