"""Logs: event names with fields, on standard error."""
