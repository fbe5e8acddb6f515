"""Check whether the installed Orcheo, LangGraph and their tables fit; needed on hosts of workers."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, text

from orcheo_dispatch.ops.host.findings import Finding, Grade
from orcheo_dispatch.ops.host.orcheo_probe import Probed, ask
from orcheo_dispatch.shared.errors import DatabaseError, SettingsError
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.worker.orcheo import releases
from orcheo_dispatch.worker.orcheo.opening import columns

ORCHEO = "orcheo"
_COLUMNS = text(columns.SELECT_COLUMNS)
_MIGRATION = text(columns.SELECT_MIGRATION)
_MAY_READ_MIGRATION = text("SELECT has_table_privilege('checkpoint_migrations', 'SELECT')")


def look_at_releases(settings: Settings, *, needed: bool) -> Iterator[Finding]:
    """Check the versions and, if a worker is to run here, import what it imports; takes some seconds."""
    if settings.executor != ORCHEO:
        yield Finding("executor", Grade.OK, settings.executor)
        return
    missing = releases.missing()
    if missing:
        found = "not installed here" if "orcheo-backend" in missing else f"without {', '.join(missing)}"
        grade = Grade.WRONG if needed else Grade.WARN
        yield Finding("Orcheo", grade, found, f"a worker needs it: {releases.REMEDY}")
        return
    versions = ", ".join(str(release) for release in releases.installed())
    outside = releases.untested()
    if outside is None:
        yield Finding("Orcheo", Grade.OK, versions)
    else:
        yield Finding("Orcheo", Grade.WARN, versions, f"not tested: {outside}")
    if needed:
        yield from _interfaces(ask())


def _interfaces(probed: Probed) -> Iterator[Finding]:
    if probed.wrong is not None:
        wrong, _, remedy = probed.wrong.partition(f": {releases.REMEDY}")
        mend = f"{releases.REMEDY}{remedy}"
        yield Finding("Orcheo's interfaces", Grade.WRONG, wrong, mend, SettingsError.exit_code)
        return
    yield Finding("Orcheo's interfaces", Grade.OK, "a worker finds all names and signatures that it uses")
    if probed.unfit is not None:
        yield Finding("checkpoints", Grade.WARN, f"written by LangGraph's own saver: {probed.unfit}", releases.REMEDY)


def look_at_columns(connection: Connection) -> Iterator[Finding]:
    """Look whether the tables have the columns that a worker's statements name; those that are missing are made."""
    rows = [dict(row) for row in connection.execute(_COLUMNS).mappings()]
    mismatch = columns.compare(rows)
    unfit = list(mismatch.checkpoints)
    if columns.has_migrations(rows) and connection.scalar(_MAY_READ_MIGRATION):
        unknown = columns.unknown_migration(connection.scalar(_MIGRATION))
        unfit += [unknown] if unknown else []
    other = "use a release of orcheo-dispatch that was tested with this release of Orcheo"
    if mismatch.read:
        yield Finding("Orcheo's columns", Grade.WRONG, "; ".join(mismatch.read), other, DatabaseError.exit_code)
    else:
        yield Finding("Orcheo's columns", Grade.OK, "those that a worker reads are present")
    if unfit:
        yield Finding("tables of checkpoints", Grade.WARN, "; ".join(unfit), f"LangGraph's own saver is used; {other}")
    if mismatch.traces:
        yield Finding("tables of traces", Grade.WARN, "; ".join(mismatch.traces), f"traces may be missing; {other}")
