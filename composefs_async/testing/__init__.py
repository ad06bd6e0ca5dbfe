"""For tests of programs that use this package, or that speak to registries: not imported by anything else here."""
