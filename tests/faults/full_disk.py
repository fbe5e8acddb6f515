"""A Redis whose disk runs full: it answers each write with MISCONF until there is room again."""

from __future__ import annotations

import resource
import time
from typing import Any

import redis

from orcheo_dispatch.ops.sandbox.embedded import EmbeddedRedis

_ANSWER_SECONDS = 5.0
_PATIENCE_SECONDS = 10.0


class FillableRedis(EmbeddedRedis):
    """Keeps snapshots only while its disk is full, and then cannot write them: the kernel refuses it every byte.

    By a limit on the size of its files, so no root is needed. The launcher is a Python process, which ignores
    SIGXFSZ, and so does what it becomes: the write fails with an error, as on a full disk, instead of killing Redis.
    """

    def fill_disk(self) -> None:
        """Return when Redis refuses writes."""
        self._limit_files(full=True)
        with self._client() as client:
            client.config_set("stop-writes-on-bgsave-error", "yes")
            client.config_set("save", "3600 1")
            self._save_until(client, "err")

    def empty_disk(self) -> None:
        """Return when Redis takes writes again."""
        self._limit_files(full=False)
        with self._client() as client:
            self._save_until(client, "ok")
            client.config_set("save", "")

    def _limit_files(self, *, full: bool) -> None:
        assert self.pid is not None
        _, most = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (0 if full else most, most))

    def _client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, socket_timeout=_ANSWER_SECONDS)

    @staticmethod
    def _save_until(client: redis.Redis, status: str) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            info: Any = client.info("persistence")
            if info["rdb_last_bgsave_status"] == status:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"the snapshot did not end with {status!r}")
            if not info["rdb_bgsave_in_progress"]:
                client.bgsave()
            time.sleep(0.02)
