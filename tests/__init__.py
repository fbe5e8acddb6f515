"""Tests of this project, on real servers always (see `tests/servers.py`)."""
