"""Executors and runners, for tests."""
