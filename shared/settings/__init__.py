"""Settings, read once from the environment and from credentials, at the entry point."""
