"""Servers for tests, and what stands between them and us."""
