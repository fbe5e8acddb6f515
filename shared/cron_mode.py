"""Who dispatches cron triggers, by the settings."""

from __future__ import annotations

from enum import StrEnum

ORCHEO_EXECUTOR = "orcheo"


class CronMode(StrEnum):
    """Who creates the runs of cron triggers that are due."""

    WORKER = "worker"
    API = "api"
    OFF = "off"


def cron_mode(chosen: CronMode | None, *, executor: str, api_url: str | None) -> CronMode:
    """Return who creates the runs of due cron triggers.

    Where nobody has chosen and workers have an executor other than Orcheo's, an API that is named is asked, as in
    releases before there was a choice.
    """
    if chosen is not None:
        return chosen
    return CronMode.API if executor != ORCHEO_EXECUTOR and api_url is not None else CronMode.WORKER
