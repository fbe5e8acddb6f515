"""A run executes within its workspace: two workspaces, a secret in each, every way in which a run is made.

Each way is played with Orcheo's stock worker and then with ours, on the same API and database. What is meant to differ
is in `MEANT`, and in docs/differences.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import psycopg
import pytest
import redis

from orcheo_dispatch.ops.sandbox.embedded import EmbeddedRedis
from tests.support.database.databases import Database, cloned
from tests.support.database.runs import everything, execute
from tests.support.orcheo.orcheo_stack import ApiOnDatabase, stack_beside
from tests.support.orcheo.tenants import WAYS, Outcome, Tenant, outcome, slots_of
from tests.support.processes.logbook import LOGBOOK
from tests.support.processes.processes import ROOT, Process, until
from tests.support.servers.servers import Servers, scratch

STOCK = ["-m", "celery", "-A", "orcheo_backend.worker.celery_app", "worker", "--pool=solo", "--loglevel=INFO"]
SECRETS = {"a_secret": "quartz-of-tenant-a", "b_secret": "obsidian-of-tenant-b"}
# The API, two workers and eighty runs; about a minute on an idle machine.
pytestmark = pytest.mark.timeout(900)

PENDING = Outcome("pending", None, frozenset())
_NO_WORKSPACE = Outcome("cancelled", "Run has no workspace.", frozenset())
_FOREIGN = Outcome("cancelled", "Workflow is archived or unavailable.", frozenset())
# The stock worker gets no message of these, or drops it: they stay pending for ever. None: as with a webhook.
# But for UNFILTERED: it takes a run without a workspace for one of the workspace that its message names, and then
# resolves its credentials in all workspaces.
MEANT: dict[str, Outcome | None] = {
    "created": None,
    "chatkit as api": _NO_WORKSPACE,
    "chatkit as webhook": _NO_WORKSPACE,
    "no workspace": _NO_WORKSPACE,
    "no workspace, pushed under one": _NO_WORKSPACE,
    "wrong workspace, pushed under the right one": _FOREIGN,
}
UNFILTERED = "no workspace, pushed under one"
TOLD = {
    "own": Outcome("succeeded", None, frozenset({"a_secret"})),
    "foreign": Outcome("succeeded", None, frozenset({"b_secret"})),
    "foreign by id": Outcome("succeeded", None, frozenset({"b_secret"})),
}
# Of a label that is not in the allow-list, and not pushed by the API.
UNCLAIMED = {"created, labelled", "chatkit as a user"}
REFERENCES = tuple(TOLD)


@dataclass(frozen=True, slots=True)
class Both:
    """How the runs ended, by way and by the secret that their workflow reads."""

    stock: Mapping[tuple[str, str], Outcome]
    ours: Mapping[tuple[str, str], Outcome]
    control: Outcome
    """Of B's own run with our worker: its secret is there, and is found where it may be."""
    slots: Mapping[str, int]
    """That are taken when all of our runs have ended."""
    rejected: list[str]
    """Lines of our worker's log."""
    unclaimed: set[str]
    """Ways whose runs the ledger's view lists."""


@pytest.fixture(scope="module")
def api(
    admin: psycopg.Connection[tuple[object, ...]],
    servers: Servers,
    template: Database,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ApiOnDatabase]:
    """An API of its own: a second workspace would make the callers of the session's name theirs."""
    home: Path = tmp_path_factory.mktemp("orcheo")
    with (
        scratch() as folder,
        EmbeddedRedis(folder) as server,
        cloned(admin, servers, template.name) as database,
        ApiOnDatabase(replace(database, roles=template.roles), server.url, home) as api,
    ):
        yield api


@pytest.fixture(scope="module")
def both(api: ApiOnDatabase) -> Iterator[Both]:
    """All ways, played twice."""
    for name, secret in SECRETS.items():
        LOGBOOK.plant(secret, name)
    first = api.workspaces()[0]
    second = api.create_workspace("other")
    api.limit_runs(1000)
    execute(api.database, """UPDATE workspaces SET quotas = quotas || '{"max_workflows": 1000}'""")
    with (
        closing(Tenant(api, first["slug"], first["workspace_id"])) as a,
        closing(Tenant(api, "other", second["id"])) as b,
    ):
        yield _play(api, a, b)


def _play(api: ApiOnDatabase, a: Tenant, b: Tenant) -> Both:
    a.keep_secret("a_secret", SECRETS["a_secret"])
    id_of_b_secret = b.keep_secret("b_secret", SECRETS["b_secret"])
    references = dict(zip(REFERENCES, ("a_secret", "b_secret", id_of_b_secret), strict=True))
    workflows = {name: a.workflow_that_tells(reference) for name, reference in references.items()}
    control_workflow = b.workflow_that_tells("b_secret")
    stack = stack_beside(api)
    keys = list(product(WAYS, REFERENCES))

    def make_all() -> tuple[dict[tuple[str, str], str], str]:
        runs = {(way, name): WAYS[way](a, b, workflows[name]) for way, name in keys}
        # Last: a worker that takes one message after the other has seen all before it.
        return runs, b.webhook(control_workflow)

    def outcomes(runs: Mapping[tuple[str, str], str]) -> dict[tuple[str, str], Outcome]:
        return {key: outcome(api.database, run_id, SECRETS) for key, run_id in runs.items()}

    def ends(*runs: str) -> bool:
        query = "SELECT FROM workflow_runs WHERE id = ANY (%s) AND status IN ('pending', 'running')"
        return not everything(api.database, query, list(runs))

    with stack.command("worker") as worker:
        runs, last = make_all()
        with Process(STOCK, stack.environment) as stock:
            stock.saw("ready.")
            until(lambda: ends(last), what="the stock worker ends its last run")
            stock.saw(f"Run {last} completed successfully")
        by_stock = outcomes(runs)
        execute(api.database, "DELETE FROM workflow_runs")
        with redis.Redis.from_url(api.variables["REDIS_URL"]) as client:
            client.flushdb()

        runs, last = make_all()
        claimed = [run_id for (way, _), run_id in runs.items() if way not in UNCLAIMED]
        worker.saw("worker_started")
        with stack.running("dispatcher"):
            until(lambda: ends(last, *claimed), what="our worker ends all runs that are claimed")
            held = sum(way == "created, labelled" for way, _ in runs)
            until(lambda: sum(slots_of(api).values()) == held, what="all slots but those of pending runs are returned")
            execute(
                api.database,
                "UPDATE workflow_runs SET created_at = created_at - interval '2 minutes' WHERE status = 'pending'",
            )
            unclaimed = {
                row["run_id"] for row in everything(api.database, "SELECT run_id FROM orcheo_dispatch.unclaimed_runs")
            }
            ours = outcomes(runs)
            control = outcome(api.database, last, SECRETS)
            # They are nobody's to execute; this cancels them and returns their slots.
            unlisted = [run_id for (way, _), run_id in runs.items() if way == "created, labelled"]
            with stack.command("cancel", *unlisted) as cancel:
                assert cancel.exit_code() == 0
            until(lambda: not slots_of(api), what="the slots of cancelled runs are returned")
        rejected = [line for line in worker.lines if "run_rejected" in line]
    return Both(
        by_stock,
        ours,
        control,
        slots_of(api),
        rejected,
        {way for (way, _), run_id in runs.items() if run_id in unclaimed},
    )


def test_outcome_is_that_of_the_stock_worker(both: Both, subtests: pytest.Subtests) -> None:
    for way, reference in both.stock:
        with subtests.test(f"{way}, {reference}"):
            stock, ours = both.stock[way, reference], both.ours[way, reference]
            if way not in MEANT:
                assert ours == stock
                continue
            assert stock == (TOLD[reference] if way == UNFILTERED else PENDING)
            assert ours == (MEANT[way] or both.stock["webhook", reference])


def test_secret_of_another_workspace_is_in_nothing_that_a_run_leaves(both: Both) -> None:
    assert both.control == Outcome("succeeded", None, frozenset({"b_secret"}))
    assert both.ours["webhook", "own"] == TOLD["own"]
    assert both.ours["webhook", "foreign"].status == both.ours["webhook", "foreign by id"].status == "failed"
    assert [key for key, ended in both.ours.items() if "b_secret" in ended.secrets] == []
    # It would be found: the stock worker tells it.
    assert [way for (way, _), ended in both.stock.items() if "b_secret" in ended.secrets] == [UNFILTERED] * 2


def test_each_rejected_run_is_logged_once(both: Both) -> None:
    rejected = [outcome for outcome in both.ours.values() if outcome.status == "cancelled"]
    assert len(both.rejected) == len(rejected) == 6 * len(REFERENCES)
    assert sum("reason=workspace_missing" in line for line in both.rejected) == 4 * len(REFERENCES)
    assert sum("reason=workspace_foreign" in line for line in both.rejected) == 2 * len(REFERENCES)


def test_run_slots_are_returned(both: Both) -> None:
    assert both.slots == {}


def test_runs_that_nobody_claims_are_shown(both: Both) -> None:
    assert both.unclaimed == UNCLAIMED
    assert {both.ours[way, name] for way, name in both.ours if way in UNCLAIMED} == {PENDING}


def test_differences_are_documented() -> None:
    page = (ROOT / "docs" / "differences.md").read_text()
    for words in ("POST /api/workflows/{ref}/runs", "without a workspace", "Run has no workspace."):
        assert words in page
