"""Builds the optional native module; everything else is in pyproject.toml."""

import platform
import sysconfig

from setuptools import Extension, setup

SOURCES = "composefs_async/_native"
NAMES = (
    "binding",
    "binding_entries",
    "binding_hashing",
    "binding_loading",
    "binding_scanning",
    "binding_shards",
    "binding_splitting",
    "files",
    "loading",
    "members",
    "scanning",
    "sha2",
    "sha256_pair",
    "sha2_arm",
    "sha2_shani",
    "sha2_x86",
    "shards",
    "store",
    "verity",
)
HEADERS = (
    "binding",
    "files",
    "loading",
    "members",
    "scanning",
    "sha2",
    "sha256_pair",
    "sha2_lanes",
    "shards",
    "store",
    "verity",
)
# The limited API makes one wheel for all versions from 3.11; the free-threaded build does not have it.
LIMITED = platform.python_implementation() == "CPython" and not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    ext_modules=[
        Extension(
            "composefs_async._native._core",
            sources=[f"{SOURCES}/{name}.c" for name in NAMES],
            depends=[f"{SOURCES}/{name}.h" for name in HEADERS],
            define_macros=[("Py_LIMITED_API", "0x030B0000")] if LIMITED else [],
            extra_compile_args=["-std=gnu11", "-O3", "-Wall", "-Wextra", "-fvisibility=hidden"],
            py_limited_api=LIMITED,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED else {},
)
