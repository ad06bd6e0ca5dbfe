"""The parts of a repair; `composefs_async._maintenance.repair.apply` puts them together."""
