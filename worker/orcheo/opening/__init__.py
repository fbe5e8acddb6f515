"""Preparation before the first run: tables, imports, and a trial run."""
