"""A Celery app that uses only its own settings: no environment variable changes its broker, backend or loader."""

from __future__ import annotations

from typing import Any, ClassVar

from celery import Celery
from celery.loaders.app import AppLoader
from kombu.connection import Connection


class Loader(AppLoader):
    """Loads no settings module."""

    def read_configuration(self, env: str = "") -> dict[str, Any]:  # noqa: ARG002
        """Return no settings: an app is configured where it is created."""
        return {}


class App(Celery):
    """Connects only to the broker that it was created with; stores no results."""

    backend_cls = "disabled"
    builtin_fixups: ClassVar[set[str]] = set()
    """None, because Django's fixup would import the settings that DJANGO_SETTINGS_MODULE names."""

    def __init__(self, name: str, broker_url: str) -> None:
        """`broker_url` must be one that kombu accepts."""
        self.broker_url = broker_url
        super().__init__(name, broker=broker_url, loader=Loader, set_as_current=False)

    def connection_for_read(self, url: str | None = None, **options: Any) -> Connection:
        """Return a connection for consuming."""
        connection: Connection = super().connection_for_read(url or self.broker_url, **options)
        return connection

    def connection_for_write(self, url: str | None = None, **options: Any) -> Connection:
        """Return a connection for publishing."""
        connection: Connection = super().connection_for_write(url or self.broker_url, **options)
        return connection

    def connection(self, hostname: str | None = None, *arguments: Any, **options: Any) -> Connection:
        """Return a connection of kombu."""
        connection: Connection = super().connection(hostname or self.broker_url, *arguments, **options)
        return connection

    broker_connection = connection

    def forget_connections(self) -> None:
        """Close the connections used for publishing, so that the next one is made to the address's current server."""
        self.pool.force_close_all(close_pool=False)
        # A closed pool does not reopen by itself: a caller that waits for a connection would wait forever.
        self.pool.setup()
