"""What the README says of speed is what the files of figures say, and benchmarks tell where figures come from."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
HELPERS = {"inputs", "provenance", "figures"}


@pytest.fixture(scope="module")
def figures() -> Any:
    spec = importlib.util.spec_from_file_location("benchmark_figures", BENCHMARKS / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_the_readme_are_made_of_the_figures(figures: Any) -> None:
    readme = (ROOT / "README.md").read_text()
    assert figures.filled(readme, figures.read_all()) == readme


@pytest.mark.parametrize("name", ["imports", "upkeep"])
def test_the_plots_are_made_of_the_figures(figures: Any, name: str) -> None:
    made = figures.plot(figures.read_all()[name])
    ET.fromstring(made)
    assert (BENCHMARKS / "results" / f"{name}.svg").read_text() == made


def test_the_figures_say_where_they_come_from(figures: Any) -> None:
    for found in figures.read_all().values():
        assert {"date", "commit", "processor"} <= found["provenance"].keys()


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem not in HELPERS))
def test_every_benchmark_tells_where_its_figures_come_from(name: str) -> None:
    source = (BENCHMARKS / f"{name}.py").read_text()
    assert "print_provenance(" in source
    assert ("json.write_text" in source) == ('"provenance"' in source)


def test_a_benchmark_writes_where_its_figures_come_from(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", BENCHMARKS / "objects.py", "--count", "20", "--rounds", "1"]
    options = ["--dir", tmp_path, "--json", tmp_path / "found"]
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}  # it imports its neighbour
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=60, env=environ)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads((tmp_path / "found").read_text())
    assert {"date", "commit", "processor", "kernel", "python", "composefs_async"} == found["provenance"].keys()
    assert f"commit           {found['provenance']['commit']}" in done.stdout


RUN = {"cpu": 1.0, "rss": 1}
ORIGIN = {"date": "2026-01-02", "commit": "abc", "processor": "P & Q, 2 threads"}


def runs(*seconds: float) -> list[dict[str, float]]:
    return [{"seconds": each, **RUN} for each in seconds]


def test_what_a_benchmark_of_imports_wrote_is_taken(figures: Any) -> None:
    found = {"cfsctl": runs(4.0, 3.0), "umoci": runs(5.0), "ours": runs(1.5, 2.0), "ours, python": runs(3.0, 3.5)}
    again = {"cfsctl, again": runs(0.5), "ours, again": runs(0.25)}
    taken = figures.take_imports({"provenance": ORIGIN, "A": {"input": {}, "runs": found | again}})
    assert taken["programs"] == ["cfsctl", "umoci", "ours", "ours, pure Python"]
    assert taken["rows"] == [
        {
            "name": "A",
            "cells": {
                "cfsctl": {"seconds": 3.0, "slowest": 4.0},
                "umoci": {"seconds": 5.0, "ratio": 0.6},
                "ours": {"seconds": 1.5, "slowest": 2.0, "ratio": 2.0},
                "ours, pure Python": {"seconds": 3.0, "slowest": 3.5, "ratio": 1.0},
            },
        },
        {
            "name": "A again, when it is there",
            "cells": {"cfsctl": {"seconds": 0.5}, "ours": {"seconds": 0.25, "ratio": 2.0}},
        },
    ]
    assert (
        figures.table(taken)
        == """\
| input | cfsctl | umoci | ours | ours, pure Python |
| --- | --- | --- | --- | --- |
| A | 3.0 | 5.0 (0.6) | 1.50 (2.0) | 3.0 (1.0) |
| A again, when it is there | 0.50 | – | 0.25 (2.0) | – |"""
    )
    assert "P &amp; Q" in figures.plot(taken)


def test_what_a_benchmark_of_upkeep_wrote_is_taken(figures: Any) -> None:
    costs = {"gc": {"ours": {"seconds": 2.0, "cpu": 1, "memory": 1}, "cfsctl": {"seconds": 3.0, "cpu": 1, "memory": 1}}}
    taken = figures.take_upkeep({"provenance": ORIGIN, "objects": 2000, "costs": costs})
    assert taken["rows"] == [
        {"name": "gc", "cells": {"cfsctl": {"seconds": 3.0}, "ours": {"seconds": 2.0, "ratio": 1.5}}}
    ]
    assert taken["title"].startswith("2,000 objects")
