"""What the trials of a session share: one Postgres, and in it a template with Orcheo's tables and our schema."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from orcheo_dispatch.ops.sandbox.embedded import EmbeddedPostgres, EmbeddedRedis
from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from tests.faults import history
from tests.faults.workload import Workflow
from tests.support.database.databases import Database, close, create, drop, make_orcheo_tables, migrate
from tests.support.database.runs import VERSION_ID, WORKFLOW_ID, WORKSPACE_ID

_WORKFLOWS = Path(__file__).parent / "workflows"
ONE_STEP, SEVERAL_STEPS = _WORKFLOWS / "act.py", _WORKFLOWS / "steps.py"
_NEWEST_VERSION = """
SELECT v.workflow_id, v.id, COALESCE(w.workspace_id, (SELECT id::text FROM workspaces LIMIT 1))
  FROM workflow_versions AS v JOIN workflows AS w ON w.id = v.workflow_id
"""


@dataclass(frozen=True, slots=True)
class Ground:
    """Where a trial takes place."""

    postgres: EmbeddedPostgres
    template: Database
    workflow: Workflow

    @contextmanager
    def database(self) -> Iterator[Database]:
        """Yield a database of a trial's own, in which everything is noted."""
        with self._admin() as admin:
            database = create(admin, self.postgres.url, self.template.name)
        try:
            with psycopg.connect(database.dsn, autocommit=True) as connection:
                history.install(connection)
            yield database
        finally:
            self.postgres.start()
            with self._admin() as admin:
                drop(admin, database)

    def _admin(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(self.postgres.url, autocommit=True)


@contextmanager
def ground(
    *, orcheo: bool, uploaded: Path = ONE_STEP, migrated: Callable[[Database], None] = migrate
) -> Iterator[Ground]:
    """Make it, with a real workflow in it where `orcheo` is to execute the runs; leave nothing behind.

    `migrated` creates our schema in the template: this release's, unless given.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="orcheo-dispatch-faults-")))
        postgres = stack.enter_context(EmbeddedPostgres(folder / "postgres", durable=False))
        with psycopg.connect(postgres.url, autocommit=True) as admin:
            template = create(admin, postgres.url)
            workflow = Workflow(WORKFLOW_ID, VERSION_ID, WORKSPACE_ID)
            with EmbeddedRedis(folder / "redis") as redis:
                make_orcheo_tables(template, redis.url)
                if orcheo:
                    workflow = _upload(template, uploaded, redis.url, folder / "orcheo")
            migrated(template)
            close(admin, template)
        yield Ground(postgres, template, workflow)


def _upload(database: Database, workflow: Path, redis_url: str, folder: Path) -> Workflow:
    with OrcheoApi(database.dsn, redis_url, folder) as api:
        api.upload(workflow, "act")
    with psycopg.connect(database.dsn) as connection:
        row = connection.execute(_NEWEST_VERSION).fetchone()
    assert row is not None
    return Workflow(*map(str, row))
