"""Databases for tests, roles, and rows."""
