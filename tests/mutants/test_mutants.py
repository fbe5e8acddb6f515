"""The mutator itself: what it changes, that it changes nothing else, and that mutants are killed where they must be."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pglast import ast, parse_sql
from pglast.stream import RawStream
from sqlalchemy import text

from orcheo_dispatch.shared.schema import begin_guard
from tests.mutants.equivalent import Listed, listed, stale
from tests.mutants.in_force import SourceCopy
from tests.mutants.mutate import Style, mutants, numbered
from tests.mutants.results import Fate, Recording, Result, Results
from tests.mutants.routines import routine_mutants
from tests.mutants.slot import Slot
from tests.mutants.statements import Definition, Statement, statements
from tests.mutants.trial import Trial
from tests.support.database.databases import Database
from tests.support.database.runs import everything
from tests.support.database.statements import STATEMENTS

_ALL = statements()
_HEARTBEAT = _ALL["shared.ledger.statements.execute.HEARTBEAT"]
_VIEWS = """
SELECT c.relname::text, pg_get_viewdef(c.oid) FROM pg_class AS c
 WHERE c.relnamespace = 'orcheo_dispatch'::regnamespace AND c.relkind = 'v' ORDER BY 1
"""
_FUNCTIONS = """
SELECT p.proname::text, pg_get_functiondef(p.oid)
  FROM pg_proc AS p WHERE p.pronamespace = 'orcheo_dispatch'::regnamespace ORDER BY 1
"""
_ROUTINE = """CREATE OR REPLACE FUNCTION f(x integer) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    found text := CASE WHEN x > 0 THEN 'a' END;
BEGIN
    IF x > 1 AND found = 'a' THEN
        SELECT t.a INTO found
          FROM t WHERE t.b = x;
    ELSIF x = 1 THEN
        EXECUTE 'SELECT a FROM t WHERE b = ''x''' INTO found;
    END IF;
    PERFORM g(found);
    found := (SELECT max(a) FROM t HAVING count(*) > 1);
    RETURN found;
END $$"""


def test_all_statements_of_the_ledger_are_found() -> None:
    folders = ("shared.ledger.statements.", "shared.alerts.")
    found = {each.name: each.text for each in _ALL.values() if each.key.startswith(folders)}
    assert found == {name: each.text for name, each in STATEMENTS.items()}
    assert {each.split(".", 1)[0] for each in _ALL} == {"dispatcher", "ops", "shared", "worker"}


def test_all_views_and_functions_of_the_schema_are_found_as_they_are(database: Database) -> None:
    found = {each.name: each for each in _ALL.values() if isinstance(each, Definition)}
    views = {row["relname"] for row in everything(database, _VIEWS)}
    functions = {row["proname"] for row in everything(database, _FUNCTIONS)}
    # Those of modules: two have no conditions, the others are statements.
    assert found.keys() == views | functions - {"iso", "moved", "wake", "begin_once"}
    assert {f"shared.schema.{module}._CREATE_FUNCTION" for module in ("api_table", "begin_guard")} <= _ALL.keys()
    before = [everything(database, sql) for sql in (_VIEWS, _FUNCTIONS)]
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        for each in found.values():
            connection.execute(each.created_with(each.text).encode())
        assert [everything(database, sql) for sql in (_VIEWS, _FUNCTIONS)] == before
        for each in found.values():
            connection.execute(each.created_with(each.rewritten).encode())


def test_function_of_a_trigger_is_executed_by_what_names_its_table() -> None:
    found = {each.name: each.readers for each in _ALL.values() if isinstance(each, Definition)}
    assert found["record_policy"] == {"record_policy", "policy"}
    assert found["append_only"] == {"append_only", "operation"}


def test_functions_in_plpgsql_are_changed_in_statements_conditions_and_dynamic_sql() -> None:
    changed = {each.change: each.text for each in routine_mutants(_ROUTINE)}
    into = "SELECT t.a INTO found\n          FROM t WHERE t.b = x"
    expected = {
        "drop arm: WHEN x > 0 THEN 'a'": ("CASE WHEN x > 0 THEN 'a' END", "NULL"),
        "negate arm: WHEN x > 0 THEN 'a'": ("CASE WHEN x > 0 THEN", "CASE WHEN NOT x > 0 THEN"),
        "drop: x > 1": ("IF x > 1 AND found = 'a' THEN", "IF found = 'a' THEN"),
        "negate: x > 1": ("IF x > 1 AND", "IF NOT x > 1 AND"),
        "drop: found = 'a'": ("IF x > 1 AND found = 'a' THEN", "IF x > 1 THEN"),
        "negate: found = 'a'": ("AND found = 'a' THEN", "AND NOT found = 'a' THEN"),
        "drop: t.b = x": (into, "SELECT t.a FROM t INTO found"),
        "negate: t.b = x": (into, "SELECT t.a FROM t WHERE NOT t.b = x INTO found"),
        "drop: x = 1": ("ELSIF x = 1 THEN", "ELSIF TRUE THEN"),
        "negate: x = 1": ("ELSIF x = 1 THEN", "ELSIF NOT x = 1 THEN"),
        "drop: b = 'x'": (" WHERE b = ''x'''", "'"),
        "negate: b = 'x'": ("WHERE b = ''x''", "WHERE NOT b = ''x''"),
        "drop: count(*) > 1": (" HAVING count(*) > 1)", ")"),
        "negate: count(*) > 1": ("HAVING count(*)", "HAVING NOT count(*)"),
    }
    assert all(_ROUTINE.count(old) == 1 for old, _ in expected.values())
    assert changed == {change: _ROUTINE.replace(old, new) for change, (old, new) in expected.items()}


def test_statement_that_is_made_of_names_is_that_of_its_module(tmp_path: Path) -> None:
    statement = _ALL["shared.schema.begin_guard._ENABLED"]
    assert statement.text == vars(begin_guard)["_ENABLED"]
    mutant = next(each.text for each in statement.mutants() if each.change.startswith("drop: tgname"))
    assert mutant == "SELECT tgenabled <> 'D' FROM pg_trigger WHERE tgrelid = to_regclass('workflow_runs')"
    with SourceCopy(tmp_path / "src").changed(statement, mutant):
        source = (tmp_path / "src/orcheo_dispatch/shared/schema/begin_guard.py").read_text()
    assert f"_ENABLED = (\n    {mutant!r}\n)\n" in source


def test_modules_are_those_that_the_product_imports() -> None:
    assert _ALL["ops.demo.__init__._TERMINAL"].module == "orcheo_dispatch.ops.demo"
    assert _HEARTBEAT.module == "orcheo_dispatch.shared.ledger.statements.execute"


def test_view_is_read_by_what_reads_a_view_of_it() -> None:
    found = {each.name: each.readers for each in _ALL.values() if isinstance(each, Definition)}
    assert {"live_runs", "held_back_runs", "wanted_workers"} <= found["live_runs"]
    assert found["held_back_runs"] == {"held_back_runs"}


@pytest.mark.parametrize("statement", _ALL.values(), ids=lambda each: each.key)
def test_statement_is_printed_as_it_was_parsed(statement: Statement) -> None:
    plain, _ = numbered(statement.text, statement.style)
    tree = parse_sql(plain)
    assert _same(tree, parse_sql(RawStream()(tree)))


@pytest.mark.parametrize(
    ("sql", "changes"),
    [
        ("SELECT 1 FROM t WHERE a", {"drop: a": "SELECT 1 FROM t", "negate: a": "SELECT 1 FROM t WHERE NOT a"}),
        (
            "DELETE FROM t WHERE a AND NOT b",
            {
                "drop: a": "DELETE FROM t WHERE NOT b",
                "negate: a": "DELETE FROM t WHERE NOT a AND NOT b",
                "drop: NOT b": "DELETE FROM t WHERE a",
                "negate: NOT b": "DELETE FROM t WHERE a AND b",
            },
        ),
        (
            "SELECT 1 FROM t JOIN u ON a = b",
            {
                "drop: a = b": "SELECT 1 FROM t INNER JOIN u ON TRUE",
                "negate: a = b": "SELECT 1 FROM t INNER JOIN u ON NOT a = b",
            },
        ),
        (
            "SELECT a FROM t GROUP BY a HAVING count(*) > 1",
            {
                "drop: count(*) > 1": "SELECT a FROM t GROUP BY a",
                "negate: count(*) > 1": "SELECT a FROM t GROUP BY a HAVING NOT count(*) > 1",
            },
        ),
        (
            "SELECT count(*) FILTER (WHERE a) FROM t",
            {
                "drop: a": "SELECT count(*) FROM t",
                "negate: a": "SELECT count(*) FILTER (WHERE NOT a) FROM t",
            },
        ),
        (
            "INSERT INTO t VALUES (1) ON CONFLICT (i) DO UPDATE SET a = 1 WHERE t.b",
            {
                "drop: t.b": "INSERT INTO t VALUES (1) ON CONFLICT (i) DO UPDATE SET a = 1",
                "negate: t.b": "INSERT INTO t VALUES (1) ON CONFLICT (i) DO UPDATE SET a = 1 WHERE NOT t.b",
            },
        ),
        ("SELECT a OR b", {"drop from OR: a": "SELECT b", "drop from OR: b": "SELECT a"}),
        (
            "SELECT CASE WHEN a THEN 1 WHEN b THEN 2 ELSE 3 END",
            {
                "drop arm: WHEN a THEN 1": "SELECT CASE WHEN b THEN 2 ELSE 3 END",
                "negate arm: WHEN a THEN 1": "SELECT CASE WHEN NOT a THEN 1 WHEN b THEN 2 ELSE 3 END",
                "drop arm: WHEN b THEN 2": "SELECT CASE WHEN a THEN 1 ELSE 3 END",
                "negate arm: WHEN b THEN 2": "SELECT CASE WHEN a THEN 1 WHEN NOT b THEN 2 ELSE 3 END",
                "drop ELSE: 3": "SELECT CASE WHEN a THEN 1 WHEN b THEN 2 END",
            },
        ),
        ("SELECT CASE x WHEN 'a' THEN 1 END", {"drop arm: WHEN 'a' THEN 1": "SELECT NULL"}),
        (
            "SELECT a AND b, a AND b",
            {
                **{f"drop: a{again}": f"SELECT {sql}" for again, sql in (("", "b, a AND b"), (" (2)", "a AND b, b"))},
                **{f"drop: b{again}": f"SELECT {sql}" for again, sql in (("", "a, a AND b"), (" (2)", "a AND b, a"))},
                "negate: a": "SELECT NOT a AND b, a AND b",
                "negate: a (2)": "SELECT a AND b, NOT a AND b",
                "negate: b": "SELECT a AND NOT b, a AND b",
                "negate: b (2)": "SELECT a AND b, a AND NOT b",
            },
        ),
    ],
)
def test_conditions_and_arms_are_changed_one_at_a_time(sql: str, changes: dict[str, str]) -> None:
    assert {each.change: each.text for each in mutants(sql, Style.PLAIN)} == changes


@pytest.mark.parametrize(
    ("style", "sql", "mutant"),
    [
        (
            Style.SQLALCHEMY,
            "SELECT '2000-01-01 00:00' FROM t WHERE a = :a_1 AND b = ANY (CAST(:b AS text[])) AND c = :a_1",
            "SELECT '2000-01-01 00:00' FROM t WHERE b = ANY(CAST(:b AS text[])) AND c = :a_1",
        ),
        (
            Style.PSYCOPG,
            "SELECT %(z)s::text FROM t WHERE a = %(a)s AND b = %(b)s",
            "SELECT CAST(%(z)s AS text) FROM t WHERE b = %(b)s",
        ),
    ],
)
def test_parameters_keep_their_names(style: Style, sql: str, mutant: str) -> None:
    (found,) = (each for each in mutants(sql, style) if each.change.startswith("drop: a"))
    assert found.text == mutant


def test_mutants_differ_from_their_statement_and_from_each_other() -> None:
    found = _HEARTBEAT.mutants()
    assert len({each.text for each in found}) == len(found)
    original = parse_sql(numbered(_HEARTBEAT.text, _HEARTBEAT.style)[0])
    for each in found:
        assert not _same(parse_sql(numbered(each.text, _HEARTBEAT.style)[0]), original), each.change
        assert {*text(each.text)._bindparams} <= {*text(_HEARTBEAT.text)._bindparams}


def test_list_of_equivalent_mutants_is_not_stale() -> None:
    assert stale(listed(), _ALL) == []


def test_list_is_stale_when_a_statement_or_a_mutant_is_another_one() -> None:
    change = _HEARTBEAT.mutants()[0].change
    good = Listed(_HEARTBEAT.digest, {change: "why"})
    assert stale({_HEARTBEAT.key: good}, _ALL) == []
    for wrong, said in (
        ({_HEARTBEAT.key: replace(good, digest="x")}, "has changed"),
        ({_HEARTBEAT.key: replace(good, reasons={"drop: nothing": "why"})}, "has no mutant"),
        ({_HEARTBEAT.key: replace(good, reasons={change: " "})}, "no reason"),
        ({"shared.NOTHING": good}, "is no statement"),
    ):
        (told,) = stale(wrong, _ALL)
        assert said in told


def test_digest_changes_with_the_statement_but_not_with_its_layout() -> None:
    other = replace(_HEARTBEAT, text=f"-- A comment.\n{_HEARTBEAT.text.replace(' AND ', '\n   AND ')}")
    assert other.digest == _HEARTBEAT.digest
    assert replace(_HEARTBEAT, text=_HEARTBEAT.mutants()[0].text).digest != _HEARTBEAT.digest


def test_results_of_a_statement_that_has_changed_are_forgotten(tmp_path: Path) -> None:
    Results(tmp_path / "results").add(_HEARTBEAT, "drop: a", Result(Fate.KILLED, "test"))
    again = Results(tmp_path / "results")
    assert again.of(_HEARTBEAT) == {"drop: a": Result(Fate.KILLED, "test")}
    assert again.of(replace(_HEARTBEAT, text=_HEARTBEAT.mutants()[0].text)) == {}


@pytest.mark.parametrize("environment", [None, {}])
def test_mutant_is_in_force_in_processes_that_a_test_starts(
    environment: dict[str, str] | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Put back afterwards.
    monkeypatch.setattr(subprocess.Popen, "__init__", subprocess.Popen.__init__)
    copy = SourceCopy(tmp_path / "src")
    copy.use()
    mutant = _HEARTBEAT.mutants()[0].text

    def seen() -> str:
        program = f"from {_HEARTBEAT.module} import HEARTBEAT; print(HEARTBEAT.text)"
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=True)
        return done.stdout.removesuffix("\n")

    with copy.changed(_HEARTBEAT, mutant):
        assert seen() == mutant
    assert seen() == _HEARTBEAT.text


def test_planted_mutants_are_killed_and_harmless_ones_survive(tmp_path: Path) -> None:
    file = "tests/integration/recovery/test_recovering.py"
    live, back = (
        f"{file}::test_{name}"
        for name in ("live_run_is_not_reaped", "worker_that_comes_back_after_reap_changes_nothing")
    )
    reap = _ALL["shared.ledger.statements.recover.REAP"]
    with Slot(tmp_path, [file, "tests/plans/test_plans.py"]) as slot:

        def tried(statement: Statement, change: str, *tests: str) -> str | None:
            (mutant,) = (each for each in statement.mutants() if each.change == change)
            assert slot.ask("prepare", statement=statement.key, texts=[mutant.text]) == {"errors": [None]}
            limits = [60.0] * len(tests)
            answer = slot.ask("run", tests=tests, limits=limits, statement=statement.key, mutant=mutant.text)
            assert "died" not in answer
            failed: str | None = answer.get("failed")
            return failed

        nonsense = slot.ask("prepare", statement=reap.key, texts=["SELECT nothing"])
        assert nonsense == {"errors": ['column "nothing" does not exist']}
        recorded = slot.ask("record", tests=[live], limits=[60.0])
        assert "failed" not in recorded
        assert {reap.key, _HEARTBEAT.key} <= {*recorded["executed"]}
        assert tried(reap, "drop: d.lease_expires_at < now()", back, live) == live
        assert tried(_HEARTBEAT, "negate: d.state || '' = 'running'", live) == live
        assert tried(_HEARTBEAT, "drop: d.state || '' = 'running' (2)", live, back) is None
        # A mutant is taken back with its fork.
        assert "failed" not in slot.ask("run", tests=[back, live], limits=[60.0, 60.0])


def test_mutant_of_a_view_is_in_force_in_the_databases_of_its_tests_only(tmp_path: Path) -> None:
    folder = "tests/integration/dispatcher"
    file, view = f"{folder}/test_status_model.py", _ALL["shared.schema.views.live_runs"]
    tests = [f"{file}::test_figures_of_runs_are_those_of_the_model[{seed}]" for seed in range(20)]
    paths = ["tests/integration/recovery/test_recovering.py", file, "tests/plans/test_plans.py"]
    with Slot(tmp_path, paths) as slot:
        (mutant,) = (each for each in view.mutants() if each.change == "negate: d.lease_expires_at < now()")
        wrong = view.text.replace("d.run_id,", "d.nothing,", 1)
        answer = slot.ask("prepare", statement=view.key, texts=[mutant.text, wrong])
        assert answer == {"errors": [None, "column d.nothing does not exist"]}
        recorded = slot.ask("record", tests=tests[:1], limits=[60.0])
        assert {view.key, "shared.schema.views.all_pending_runs"} <= {*recorded["executed"]}
        assert "shared.schema.views.held_back_runs" not in recorded["executed"]
        limits = [60.0] * len(tests)
        answer = slot.ask("run", tests=tests, limits=limits, statement=view.key, mutant=mutant.text)
        assert answer.get("failed") in tests, answer
        same = slot.ask("run", tests=tests, limits=limits, statement=view.key, mutant=view.rewritten)
        assert {"failed", "died"}.isdisjoint(same), same
        assert "failed" not in slot.ask("run", tests=tests, limits=limits)


def test_test_that_looks_at_the_layout_of_a_statement_kills_no_mutant(tmp_path: Path) -> None:
    statement, file = _ALL["shared.ledger.statements.publish.LAPSED"], "tests/mutants/text_sample.py"
    layout, meaning = (f"{file}::test_{name}" for name in ("layout", "meaning"))
    recording, results = Recording(tmp_path / "recorded"), Results(tmp_path / "results")
    for test, seconds in ((layout, 0.1), (meaning, 0.2)):
        recording.add(test, {"took": {test: seconds}, "executed": [statement.key]})
    # The others are what a session starts its servers with.
    paths = ["tests/integration/recovery/test_recovering.py", file, "tests/plans/test_plans.py"]
    Trial(recording, results, {}, budget=60.0, paths=paths).run(tmp_path, 1, [statement], again=False)
    found = results.of(statement)
    assert len(found) == len(statement.mutants())
    killed = {change: each.by for change, each in found.items() if each.fate is Fate.KILLED}
    assert killed == {"drop: d.lease_expires_at < now()": meaning}


def _same(one: Any, other: Any) -> bool:
    """Return whether two trees are the same but for the places of their nodes in the text."""
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, ast.Node):
        names = {name for name in one if not name.endswith(("location", "_len", "list_start", "list_end"))}
        return type(one) is type(other) and all(_same(getattr(one, name), getattr(other, name)) for name in names)
    return bool(one == other)
