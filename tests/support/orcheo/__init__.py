"""Orcheo's API and its runs, for tests."""
