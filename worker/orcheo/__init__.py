"""Executes runs with Orcheo itself: the only part of this project that imports it."""
