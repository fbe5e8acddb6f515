"""Our processes, started for tests."""
