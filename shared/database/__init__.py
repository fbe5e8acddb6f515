"""Postgres: connections, sessions, classification of errors, and changes of many rows."""
