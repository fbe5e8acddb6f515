"""Due cron triggers: the API creates their runs when it is asked to."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

from shared.logs import log
from shared.redaction import redact
from shared.settings import Settings

_PATH = "/api/triggers/cron/dispatch"
_TIMEOUT_SECONDS = 30.0


class CronDispatch:
    """Asks the API to create the runs of cron triggers that are due."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.api_url.rstrip("/") + _PATH if settings.api_url else None
        self._token = settings.service_token
        self._complained = False

    def __call__(self) -> int | None:
        """Ask once; return how many runs it created, or None where it could not be asked. Never raises."""
        if self._url is None:
            self._complain("ORCHEO_API_URL is not set")
            return None
        headers = {"Content-Type": "application/json"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token.get_secret_value()}"
        request = urllib.request.Request(self._url, data=b"", headers=headers, method="POST")  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310
                created = json.load(response)
        except urllib.error.HTTPError as error:
            self._complain(f"the API answered {error.code}")
            return None
        except (OSError, ValueError) as error:
            self._complain(redact(str(getattr(error, "reason", error))))
            return None
        self._complained = False
        runs = len(created) if isinstance(created, list) else 0
        log.info("cron_dispatched", runs=runs)
        return runs

    def _complain(self, reason: str) -> None:
        if not self._complained:
            log.warning("cron_not_dispatched", reason=reason)
        self._complained = True
