"""Check settings, database, broker and Orcheo of a host, and say how to fix what is wrong."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import SecretStr
from sqlalchemy import Connection, text

from orcheo_dispatch.ops.host import check_cron, rights
from orcheo_dispatch.ops.host.check_broker import look_at_broker
from orcheo_dispatch.ops.host.check_orcheo import ORCHEO, look_at_columns, look_at_releases
from orcheo_dispatch.ops.host.findings import Finding, Grade
from orcheo_dispatch.shared.broker import celery_environment
from orcheo_dispatch.shared.database.connections import connect as connect_postgres
from orcheo_dispatch.shared.database.connections import database_errors, open_engine, through_pooler, transaction
from orcheo_dispatch.shared.errors import DatabaseError
from orcheo_dispatch.shared.ledger.model import PENDING_INDEX, TURNS_INDEX, ProcessKind
from orcheo_dispatch.shared.ledger.status import read_others
from orcheo_dispatch.shared.schema import parts
from orcheo_dispatch.shared.schema.api_table import index_is_valid, notifies
from orcheo_dispatch.shared.schema.begin_guard import guards_begins
from orcheo_dispatch.shared.schema.footing import several_tables, unmet_to_read, unmet_to_write
from orcheo_dispatch.shared.schema.revision import current_revision, newest_revision
from orcheo_dispatch.shared.settings.environment import notes
from orcheo_dispatch.shared.settings.model import Settings, variables
from orcheo_dispatch.shared.settings.surroundings import in_container, is_local
from orcheo_dispatch.shared.text.redaction import redact

POSTGRES_OLDEST = 140000


def check(settings: Settings, kind: ProcessKind | None = None) -> list[Finding]:
    """Check everything, or what a process of this kind needs of its host; findings are never raised as errors."""
    findings = [*_settings(settings)]
    if kind is not ProcessKind.BEAT:
        findings += look_at_database(settings, kind)
    findings += look_at_broker(settings)
    findings += check_cron.last_dispatch(settings)
    if kind in (None, ProcessKind.WORKER):
        findings += look_at_releases(settings, needed=kind is not None)
    return findings


def exit_code(findings: list[Finding]) -> int:
    """Return 0 where nothing is wrong, else the exit code of the first thing that is."""
    return next((finding.exit_code for finding in findings if finding.grade is Grade.WRONG), 0)


def _settings(settings: Settings) -> Iterator[Finding]:
    yield Finding("settings", Grade.OK, "all variables can be read")
    if ignored := celery_environment.ignored():
        yield Finding(
            "Celery's environment",
            Grade.WARN,
            f"{', '.join(ignored)} set, and ignored by our processes",
            "unset them for the API as well: its own Celery obeys them, and its pushes may go to another broker",
        )
    for note in notes(variables()):
        yield Finding(note.variable, Grade.WARN, note.text, "write it so that Orcheo and orcheo-dispatch read the same")
    broker, slots = settings.redis_url.get_secret_value(), settings.slots_redis_url.get_secret_value()
    if broker != slots:
        given = "is" if "slots_redis_url" in settings.model_fields_set else "is not set and counts as"
        yield Finding(
            "Redis of the run slots",
            Grade.WARN,
            f"REDIS_URL is {redact(broker)}, ORCHEO_REDIS_URL {given} {redact(slots)}",
            "set both to the Redis that the API uses, otherwise slots are returned to the wrong Redis",
        )
    if in_container() and (local := [name for name, address in _addresses(settings) if is_local(address)]):
        yield Finding(
            "addresses in a container",
            Grade.WARN,
            f"{', '.join(local)} on localhost, which is this container itself",
            "name the host or the service, such as redis://redis:6379/0, unless the network is shared",
        )
    yield from check_cron.cron(settings)


def _addresses(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield each address that is set, and not only assumed, with its variable."""
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        address = value.get_secret_value() if isinstance(value, SecretStr) else value
        if name in settings.model_fields_set and str(field.alias).endswith(("_URL", "_DSN")) and address:
            yield str(field.alias), address


def look_at_database(settings: Settings, kind: ProcessKind | None = None) -> Iterator[Finding]:
    """Check the database, or what a process of this kind needs of it."""
    try:
        with open_engine(settings, role="check") as engine, transaction(engine) as connection:
            yield from _look_inside(connection, settings.executor, kind)
            if kind in (None, ProcessKind.WORKER) and settings.executor == ORCHEO:
                yield from look_at_columns(connection)
            if kind in (None, ProcessKind.DISPATCHER):
                yield from _wake_up(connection, settings)
    except DatabaseError as error:
        yield Finding("database", Grade.WRONG, str(error), "see ORCHEO_POSTGRES_DSN", DatabaseError.exit_code)


def _look_inside(connection: Connection, executor: str, kind: ProcessKind | None) -> Iterator[Finding]:
    wrong = DatabaseError.exit_code
    number = int(str(connection.scalar(text("SHOW server_version_num"))))
    shown = f"PostgreSQL {connection.scalar(text('SHOW server_version'))}"
    if number >= POSTGRES_OLDEST:
        yield Finding("database", Grade.OK, shown)
    else:
        yield Finding("database", Grade.WRONG, shown, "PostgreSQL 14 or later is needed", wrong)
    unmet = unmet_to_read(connection)
    yield from (Finding(each.what, Grade.WRONG, each.found, each.mend, wrong) for each in unmet)
    if unmet:
        return
    yield Finding("Orcheo's tables", Grade.OK, "workflow_runs is there")
    if (schemas := several_tables(connection)) is not None:
        mend = "set the search_path of this role to the schema of this Orcheo, if the first one is another's"
        yield Finding("Orcheo's tables", Grade.WARN, f"workflow_runs is in several schemas: {schemas}", mend)
    lacks = rights.lacking(connection)
    yield from _rights(lacks, executor) if kind is None else _rights_of(kind, lacks, executor)
    if not lacks.entry:
        return
    unmet = unmet_to_write(connection)
    yield from (Finding(each.what, Grade.WRONG, each.found, each.mend, wrong) for each in unmet)
    revision, newest = current_revision(connection), newest_revision()
    if revision == newest:
        yield Finding("our schema", Grade.OK, f"revision {revision}")
        yield from _others(connection, kind)
    else:
        yield Finding(
            "our schema",
            Grade.WRONG,
            f"revision {revision or 'none'}, needs {newest}",
            "orcheo-dispatch migrate",
            wrong,
        )
    yield from _parts(connection)
    yield from _index(connection, "index on pending runs", PENDING_INDEX, "status and pages read all runs without it")
    yield from _index(connection, "index on turns", TURNS_INDEX, "a workflow that floods holds others up without it")


def _parts(connection: Connection) -> Iterator[Finding]:
    """Check for dropped views and indexes, without which runs are still dispatched."""
    missing = [name for name in parts.missing(connection) if name not in parts.FUNCTIONS]
    if missing:
        mend = "orcheo-dispatch migrate, then the SQL that 'orcheo-dispatch roles' prints"
        yield Finding("views and indexes", Grade.WARN, f"missing: {', '.join(missing)}", mend)


def _others(connection: Connection, kind: ProcessKind | None) -> Iterator[Finding]:
    """Report runs that the API executes instead of our workers, and runs that no dispatcher claims."""
    if guards_begins(connection):
        yield Finding("double execution", Grade.OK, "a run that a worker has begun cannot be begun again")
    else:
        yield Finding(
            "double execution",
            Grade.WARN,
            "the trigger that refuses a second start of a run is missing or disabled",
            "orcheo-dispatch migrate",
        )
    # A worker may not read the views.
    others = read_others(connection) if kind in (None, ProcessKind.DISPATCHER) else None
    if others is None:
        return
    if others.begun_elsewhere:
        yield Finding(
            "execution in the API",
            Grade.WARN,
            f"{others.begun_elsewhere} runs of the last 10 minutes were begun by the API or by Orcheo's own worker",
            "set ORCHEO_INPROCESS_EXECUTION=false for the API and restart it, and stop Orcheo's own worker",
        )
    else:
        yield Finding("execution in the API", Grade.OK, "no run of the last 10 minutes was begun by another process")
    if others.unclaimed:
        yield Finding(
            "unclaimed runs",
            Grade.WARN,
            f"{others.unclaimed} runs are pending that no dispatcher will claim",
            "orcheo-dispatch runs --unclaimed shows the reason and what to change for each",
        )


def _index(connection: Connection, what: str, index: str, without: str) -> Iterator[Finding]:
    valid = index_is_valid(connection, index)
    if valid:
        yield Finding(what, Grade.OK, index)
    else:
        found = "missing" if valid is None else "invalid"
        yield Finding(what, Grade.WARN, found, f"orcheo-dispatch migrate ({without})")


def _wake_up(connection: Connection, settings: Settings) -> Iterator[Finding]:
    """Report what wakes dispatchers between two ticks, besides the API's push."""
    if not notifies(connection):
        found = "off: a run without a push waits for a tick"
        yield Finding("wake-up by NOTIFY", Grade.OK, found, "orcheo-dispatch migrate --notify, if that is too long")
        return
    name = "ORCHEO_DISPATCH_LISTEN_DSN" if settings.listen_dsn else "ORCHEO_POSTGRES_DSN"
    dsn = (settings.listen_dsn or settings.postgres_dsn).get_secret_value()
    mend = "name a way without a pooler in ORCHEO_DISPATCH_LISTEN_DSN; until then ticks and pushes do"
    try:
        with database_errors(), connect_postgres(dsn, role="check") as direct:
            if through_pooler(direct):
                yield Finding("wake-up by NOTIFY", Grade.WARN, f"not heard: {name} leads through a pooler", mend)
            else:
                yield Finding("wake-up by NOTIFY", Grade.OK, f"on, received by {name}")
    except DatabaseError as error:
        yield Finding("wake-up by NOTIFY", Grade.WARN, f"{name}: {error}", mend)


def _rights(lacks: rights.Lacking, executor: str) -> Iterator[Finding]:
    mend, wrong = "the owner runs the SQL that 'orcheo-dispatch roles' prints", DatabaseError.exit_code
    if lacks.dispatcher and lacks.worker:
        kind, missing = min(("dispatcher", lacks.dispatcher), ("worker", lacks.worker), key=lambda lack: len(lack[1]))
        yield Finding("rights", Grade.WRONG, f"a {kind} lacks {', '.join(missing)}", mend, wrong)
        return
    if lacks.dispatcher and executor == "orcheo":
        found = "enough for a worker with an executor of your own, not for the executor orcheo"
        yield Finding("rights", Grade.WRONG, found, "connect as Orcheo's API does", wrong)
    elif lacks.dispatcher:
        yield Finding("rights", Grade.OK, "enough for a worker with an executor of your own")
    else:
        yield Finding("rights", Grade.OK, "enough for a dispatcher" + ("" if lacks.worker else " and a worker"))
    if lacks.traces:
        yield Finding("traces", Grade.WARN, "no right to close those of lost runs", mend)


def _rights_of(kind: ProcessKind, lacks: rights.Lacking, executor: str) -> Iterator[Finding]:
    """Check the rights of one kind of process. The rights that Orcheo's executor needs are not listed anywhere."""
    missing = lacks.dispatcher if kind is ProcessKind.DISPATCHER or executor == "orcheo" else lacks.worker
    if missing:
        mend = "the owner runs the SQL that 'orcheo-dispatch roles' prints, or connect as Orcheo's API does"
        lack = f"a {kind.value} lacks {', '.join(missing)}"
        yield Finding("rights", Grade.WRONG, lack, mend, DatabaseError.exit_code)
    else:
        yield Finding("rights", Grade.OK, f"enough for a {kind.value}")
