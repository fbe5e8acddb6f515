"""Run Orcheo's API as a service: uvicorn as Orcheo starts it, with credentials and a watchdog."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.process.notify import ServiceManager
from orcheo_dispatch.shared.settings.environment import export_values

_FEED_SECONDS = 1.0


def serve_api(host: str, port: int) -> None:
    """Serve Orcheo's API until a signal stops it. Raises `SettingsError` if it is not installed."""
    manager = ServiceManager()
    # Before its import: Orcheo reads nothing but the environment, and some of it there.
    export_values()
    try:
        import uvicorn
        from orcheo_backend.app import app
    except ImportError as error:
        raise SettingsError(f"the API needs {error.name}: pip install 'orcheo-dispatch[orcheo]'") from error

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                manager.ready("answering")
                self._feeding = asyncio.create_task(_feed(manager))

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            manager.stopping("finishing requests")
            await super().shutdown(sockets)
            self._feeding.cancel()
            with suppress(asyncio.CancelledError):
                await self._feeding

    Server(uvicorn.Config(app, host=host, port=port, access_log=False)).run()


async def _feed(manager: ServiceManager) -> None:
    """Feed the watchdog from the loop that answers requests: while it turns, they are answered."""
    while True:
        manager.feed()
        await asyncio.sleep(_FEED_SECONDS)
