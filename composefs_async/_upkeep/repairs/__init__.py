"""The parts of a repair; `composefs_async._upkeep.repair` puts them together."""
