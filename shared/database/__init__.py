"""Postgres: connections, sessions, what an error means, and changes of many rows."""
