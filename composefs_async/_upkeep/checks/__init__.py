"""What a check looks at, a module for each kind of thing; `composefs_async._upkeep.check` puts them together."""
