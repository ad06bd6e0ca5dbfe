"""Where stores live: memory, directories, web servers, object stores, registries; one protocol, blocking."""
