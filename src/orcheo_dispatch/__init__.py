"""Executes the pending runs of Orcheo: a dispatcher claims them in Postgres, workers execute them.

The folders beside this file are links to those at the top of the repository.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("orcheo-dispatch")
except PackageNotFoundError:
    __version__ = "0+unknown"
