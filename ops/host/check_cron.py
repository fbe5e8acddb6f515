"""Check who dispatches cron triggers, and when that last happened."""

from __future__ import annotations

from collections.abc import Iterator

from orcheo_dispatch.ops.host.findings import Finding, Grade
from orcheo_dispatch.shared.broker.app import connect
from orcheo_dispatch.shared.broker.installation import find_installation
from orcheo_dispatch.shared.cron.record import CronRecord, CronSeen
from orcheo_dispatch.shared.errors import BrokerError, DatabaseError
from orcheo_dispatch.shared.settings.addresses import Origin
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.shared.settings.policies import ORCHEO_EXECUTOR, CronMode
from orcheo_dispatch.shared.settings.surroundings import in_container, is_local

WHAT = "cron"
_LATE_INTERVALS = 5


def cron(settings: Settings) -> Iterator[Finding]:
    """Say who dispatches cron triggers by these settings, and what cannot work."""
    mode = settings.cron_mode
    if mode is CronMode.OFF:
        yield Finding(WHAT, Grade.OK, "off: another process dispatches cron triggers (ORCHEO_DISPATCH_CRON)")
    elif mode is CronMode.WORKER and settings.executor != ORCHEO_EXECUTOR:
        yield Finding(
            WHAT,
            Grade.WARN,
            f"workers dispatch, but not those with ORCHEO_WORKER_EXECUTOR={settings.executor}, unless it can itself",
            "ORCHEO_DISPATCH_CRON=api and ORCHEO_API_URL, or ORCHEO_DISPATCH_CRON=off",
        )
    elif mode is CronMode.API and settings.api_url is not None:
        origin = Origin.of(settings.api_url)
        if is_local(settings.api_url) and in_container():
            yield Finding(
                WHAT,
                Grade.WARN,
                f"ORCHEO_API_URL is {origin}, which in this container is the container itself",
                "name the API's host, or ORCHEO_DISPATCH_CRON=worker, which needs no API",
            )
        else:
            yield Finding(WHAT, Grade.OK, f"dispatchers ask the API at {origin}")
    else:
        yield Finding(WHAT, Grade.OK, "workers dispatch")


def last_dispatch(settings: Settings) -> Iterator[Finding]:
    """Say when cron triggers were last dispatched, by any process; nothing where a server does not answer."""
    if settings.cron_mode is CronMode.OFF:
        return
    what = "last cron dispatch"
    client = connect(settings.redis_url.get_secret_value())
    try:
        record = CronRecord(client, find_installation(settings).cron_record)
        success, failure = record.success(), record.failure()
    except (BrokerError, DatabaseError):
        # Another finding reports it.
        return
    finally:
        client.close()
    failed = f"; {_shown(failure)}" if failure and (success is None or failure.age < success.age) else ""
    if success is None:
        yield Finding(what, Grade.WARN, f"none within a day{failed}", "is one who dispatches running?")
    elif success.age > _LATE_INTERVALS * settings.cron_interval:
        yield Finding(what, Grade.WARN, f"{_ago(success)}{failed}", "see OrcheoCronSilent in the runbook")
    else:
        yield Finding(what, Grade.OK, f"{_ago(success)}{failed}")


def _ago(seen: CronSeen) -> str:
    return f"{seen.age:.0f} s ago by {seen.host}" + (", without a message of Beat" if seen.by_itself else "")


def _shown(failure: CronSeen) -> str:
    return f"failed {failure.age:.0f} s ago at {failure.host}: {failure.outcome}, {failure.reason}"
