"""Bounds of the search: those of the suite, and the wider ones of `make model`."""

from __future__ import annotations

from typing import TypedDict


class Bounds(TypedDict, total=False):
    """Bounds of `Protocol`."""

    fences: int
    faults: int
    processes: int
    restores: bool


NEAR: tuple[Bounds, ...] = (
    {"fences": 2, "faults": 1},
    {"fences": 2, "faults": 1, "processes": 1},
    {"fences": 1, "faults": 2, "restores": True},
)
"""Some 100,000 states each."""
FAR: tuple[Bounds, ...] = (
    {"fences": 2, "faults": 2},
    {"fences": 3, "faults": 1},
    {"fences": 2, "faults": 1, "restores": True},
)
"""Up to 2 million states each."""
