"""Settings: read from the environment and from credentials once, at the entry point."""
