"""Executes runs with Orcheo. The only part of this project that imports it."""
