"""Tests of this project, on real servers always (see `tests/support/servers/servers.py`)."""
