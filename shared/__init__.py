"""What dispatcher and worker have in common: settings, the ledger, its statements, the broker, logs."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("orcheo-dispatch")
except PackageNotFoundError:
    __version__ = "0+unknown"
