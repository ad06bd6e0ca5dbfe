"""Store the files of a directory while OpenTelemetry reads the counters of the repository.

pip install opentelemetry-sdk
python examples/metrics_opentelemetry.py /path/to/files /path/to/repository

It prints what it exports.  A service has an exporter of its own, such as that of OTLP, in place of this one.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import anyio
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader

from composefs_async import Repository
from composefs_async.results import Counters


def observe(meter: Meter, repo: Repository) -> None:
    """Export all counters of *repo* from now on; reading them neither blocks nor waits, on any thread."""
    for field in dataclasses.fields(Counters):

        def read(options: CallbackOptions, name: str = field.name) -> Iterable[Observation]:
            yield Observation(getattr(repo.counters(), name), {"composefs.repository": repo.path})

        unit = "By" if field.name.startswith("bytes") else ""
        meter.create_observable_counter(f"composefs.{field.name}", [read], unit)


def contents(directory: Path) -> Iterator[bytes]:
    for path in directory.iterdir():
        if path.is_file():
            yield path.read_bytes()


async def main(files: str, repository: str) -> None:
    provider = MeterProvider([PeriodicExportingMetricReader(ConsoleMetricExporter(), export_interval_millis=10_000)])
    async with Repository.init_async(repository, insecure=True) as repo:
        observe(provider.get_meter("composefs_async"), repo)
        await repo.ensure_objects_async(contents(Path(files)))
        await repo.sync_async()
        # Exports a last time, so before the repository is closed.
        await anyio.to_thread.run_sync(provider.shutdown)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    anyio.run(main, *sys.argv[1:])
