"""A run leaves the same behind as with Orcheo's stock worker, but for what docs/differences.md lists.

The workflows are subtests, not parameters: processes that share the suite's tests would each play all of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from orcheo_dispatch.ops.sandbox.orcheo_api import OrcheoApi
from tests.stock.differences import TITLES
from tests.stock.kinds import KINDS, RESTRICTED_KINDS, Between, Kind
from tests.stock.leftovers import Leftovers
from tests.stock.mongodb import MISSING, mongodb
from tests.stock.play import Played, Player
from tests.stock.plugin import install_plugin
from tests.stock.site import site
from tests.support.orcheo.orcheo_releases import NO_EGRESS
from tests.support.orcheo.orcheo_stack import stack_beside, start_afresh
from tests.support.processes.processes import ROOT, Process

STOCK = ["-m", "celery", "-A", "orcheo_backend.worker.celery_app", "worker", "--pool=solo", "--loglevel=INFO"]
# The stock worker never returns these slots.
LEAKS = sum(kind.between in {Between.ARCHIVED, Between.WORKFLOW_GONE} for kind in KINDS.values())
# A minute on an idle machine; others share it, and the workers' start is most of it.
pytestmark = pytest.mark.timeout(900)
PLAYED = {name: kind for name, kind in KINDS.items() if kind.is_here and not (kind.needs_mongodb and MISSING)}
PLAYED_RESTRICTED = {name: kind for name, kind in RESTRICTED_KINDS.items() if kind.is_here}


@dataclass(frozen=True, slots=True)
class Both:
    """What the runs have left, of the stock worker and of ours: same API, same database, one after the other."""

    kinds: Mapping[str, Kind]
    stock: Played
    ours: Played

    def of(self, name: str) -> tuple[Leftovers, Leftovers]:
        """Return what the run of one workflow is expected to have left, and what it has left."""
        kind = self.kinds[name]
        expected = self.stock.runs[kind.instead or name]
        return kind.differs.expect(expected) if kind.differs else expected, self.ours.runs[name]


@pytest.fixture(scope="module")
def prepared(orcheo: OrcheoApi) -> OrcheoApi:
    """The API, with a plugin that it has not loaded and a credential."""
    start_afresh(orcheo)
    install_plugin(Path(orcheo.variables["HOME"]))
    orcheo.add_credential("model_key", "swordfish")
    return orcheo


@pytest.fixture(scope="module")
def both(prepared: OrcheoApi, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """All workflows."""
    with nullcontext("") if MISSING else mongodb(tmp_path_factory.mktemp("mongodb")) as url:
        return _play(prepared, PLAYED, url, leaks=LEAKS)


@pytest.fixture(scope="module")
def both_restricted(prepared: OrcheoApi) -> Both:
    """Some workflows, with both workers in restricted mode."""
    return _play(prepared, PLAYED_RESTRICTED, ORCHEO_WORKFLOW_DEFINITION_MODE="restricted")


def _play(orcheo: OrcheoApi, kinds: Mapping[str, Kind], url: str = "", leaks: int = 0, **variables: str) -> Both:
    """Play the workflows twice; each worker starts once, and ours executes all runs at once."""
    stack = stack_beside(orcheo)
    stack.environment |= variables

    @contextmanager
    def stock_worker() -> Iterator[None]:
        with Process(STOCK, stack.environment) as process:
            process.saw("ready.")
            yield

    # Without a dispatcher ours takes nothing, and need not wait until the other has ended.
    with site() as pages, stack.command("worker") as worker:
        player = Player(orcheo, pages, url, kinds)
        stock = player.play(stock_worker, leaks=leaks)
        worker.saw("worker_started")
        return Both(kinds, stock, player.play(lambda: stack.running("dispatcher")))


def test_run_is_the_same_as_with_the_stock_worker(both: Both, subtests: pytest.Subtests) -> None:
    _compare_runs(both, subtests)


def test_trace_is_the_same_as_with_the_stock_worker(both: Both, subtests: pytest.Subtests) -> None:
    _compare_traces(both, subtests)


def test_last_checkpoint_is_the_same_as_with_the_stock_worker(both: Both, subtests: pytest.Subtests) -> None:
    _compare_checkpoints(both, subtests)


def test_other_systems_are_called_as_by_the_stock_worker(both: Both) -> None:
    assert both.ours.requests == both.stock.requests
    assert {"agent", "agent-tools", "http", "fail-after"} <= both.ours.requests.keys()
    assert "fail-before" not in both.ours.requests


def test_graph_store_is_the_same_as_with_the_stock_worker(both: Both) -> None:
    assert both.ours.store == both.stock.store
    assert len(both.ours.store) == 1


def test_run_slots_are_returned(both: Both) -> None:
    assert both.stock.slots == LEAKS
    assert both.ours.slots == 0


def test_all_is_the_same_in_restricted_mode(both_restricted: Both, subtests: pytest.Subtests) -> None:
    _compare_runs(both_restricted, subtests)
    _compare_traces(both_restricted, subtests)
    if NO_EGRESS.is_here:
        assert "restricted" in both_restricted.ours.runs["no-egress"].run["payload"]["error"]
    assert both_restricted.ours.requests == both_restricted.stock.requests == {}


def test_differences_are_those_that_are_documented() -> None:
    page = (ROOT / "docs" / "differences.md").read_text()
    assert tuple(re.findall(r"^### (.+)$", page, re.MULTILINE)) == TITLES
    assert f"{len(KINDS)} workflows" in page


def test_mongodb_nodes_are_compared_too() -> None:
    if MISSING:
        pytest.skip(MISSING)
    assert "mongodb" in PLAYED


def _compare_runs(both: Both, subtests: pytest.Subtests) -> None:
    for name, kind in both.kinds.items():
        with subtests.test(name):
            expected, ours = both.of(name)
            assert both.stock.runs[name].run["status"] == kind.status
            assert ours.run == expected.run


def _compare_traces(both: Both, subtests: pytest.Subtests) -> None:
    for name in both.kinds:
        with subtests.test(name):
            expected, ours = both.of(name)
            assert ours.history == expected.history
            assert ours.steps == expected.steps


def _compare_checkpoints(both: Both, subtests: pytest.Subtests) -> None:
    for name, kind in both.kinds.items():
        with subtests.test(name):
            expected, ours = both.of(name)
            if kind.instead is None:
                if ours.checkpoint is not None:
                    assert ours.checkpoint["metadata"].pop("graph_checksum")
                assert ours.checkpoint == expected.checkpoint
                # One for each step of the graph and its subgraphs; those of inputs may be left out.
                assert set(ours.namespaces) == set(expected.namespaces)
                assert Counter(ours.namespaces) <= Counter(expected.namespaces)
