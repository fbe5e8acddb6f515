"""The routes of the status page: the document, and its figures and the events of one run as JSON with stable names."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Any

from orcheo_dispatch import __version__
from orcheo_dispatch.dispatcher.page.answers import HEADERS, json_answer
from orcheo_dispatch.dispatcher.page.document import document_routes
from orcheo_dispatch.dispatcher.page.figures import Row, named
from orcheo_dispatch.dispatcher.page.verdict import Problem
from orcheo_dispatch.dispatcher.page.watch import RUNS, Seen, Watch
from orcheo_dispatch.shared.health.routes import Answer, Request, Route
from orcheo_dispatch.shared.ledger.overview import Shown, Wanted
from orcheo_dispatch.shared.ledger.processes import Process

OVERVIEW = "/overview.json"
ONE_RUN = "/run.json"
_LONGEST_ID = 200
_LISTS = (
    *("stuck", "lost", "retrying", "waiting", "dead"),
    *("backlog", "processes", "workflows", "isolated", "policies", "operations"),
)


def page_routes(watch: Watch, process: Process, *, guarded: bool, actions: bool) -> dict[str, Route]:
    """Return the routes: the page, `/overview.json` with parameters `status` and `workflow`, `/run.json` with `id`."""
    began = time.monotonic()

    def overview(request: Request) -> Answer:
        try:
            wanted = _wanted(request)
        except ValueError:
            statuses = ", ".join(Shown)
            return _bad_request(f"expected for status: one of {statuses}; workflow takes the id of a workflow.")
        body = {
            "dispatcher": {
                "id": str(process.id),
                "host": process.host,
                "pid": process.pid,
                "version": __version__,
                "up_for": time.monotonic() - began,
                "guarded": guarded,
                "actions": actions,
            },
            **_as_json(watch.look(wanted), wanted),
        }
        return json_answer(body)

    def run(request: Request) -> Answer:
        run_id = request.query.get("id", "")
        if not run_id or not _is_id(run_id):
            return _bad_request("id takes the id of a run.")
        seen = watch.tell(run_id)
        if seen is None:
            return json_answer({"error": "It was not read yet. Ask again."}, HTTPStatus.SERVICE_UNAVAILABLE)
        if isinstance(seen.story, Problem):
            return json_answer({"error": seen.story.text}, HTTPStatus.SERVICE_UNAVAILABLE)
        if not seen.story:
            return json_answer({"error": "There is no such run."}, HTTPStatus.NOT_FOUND)
        return json_answer({**seen.story, "ago": seen.ago})

    return {**document_routes(), OVERVIEW: overview, ONE_RUN: run}


def _bad_request(text: str) -> Answer:
    return Answer(f"400 Bad Request. {text}\n".encode(), status=HTTPStatus.BAD_REQUEST, headers=HEADERS)


def _is_id(given: str) -> bool:
    return len(given) <= _LONGEST_ID and given.isprintable()


def _wanted(request: Request) -> Wanted:
    """Return the runs that a request asks for; an empty parameter selects all. Raises `ValueError`."""
    status, workflow = request.query.get("status"), request.query.get("workflow")
    if workflow and not _is_id(workflow):
        raise ValueError(workflow)
    return Wanted(Shown(status) if status else None, workflow or None)


def _as_json(seen: Seen, wanted: Wanted) -> dict[str, Any]:
    figures = seen.figures
    chosen = {"status": wanted.status, "workflow": wanted.workflow, "limit": RUNS}
    runs = {**chosen, "rows": None if seen.runs is None else seen.runs}
    if figures is None:
        nothing = dict.fromkeys(("promise", "now", "hour", *_LISTS))
        return {"health": seen.health, "read": {"at": None, "ago": None}, **nothing, "runs": runs}
    return {
        "health": seen.health,
        "read": {"at": figures.read_at, "ago": seen.ago},
        "promise": figures.promise,
        "now": figures.now,
        "hour": figures.hour,
        "runs": runs,
        **figures.lists,
        "backlog": figures.backlog,
        "processes": figures.processes,
        "isolated": named(figures.isolated, seen.names),
        "policies": None if figures.policies is None else named(figures.policies, seen.names),
        "operations": None if figures.operations is None else named(figures.operations, seen.names),
        "workflows": named([_workflow(each) for each in _choices(figures.workflows, wanted)], seen.names),
    }


def _choices(workflows: list[str], wanted: Wanted) -> list[str]:
    """Return the workflows to choose from, always with the chosen one, even if its last run was long ago."""
    return [*workflows, wanted.workflow] if wanted.workflow and wanted.workflow not in workflows else workflows


def _workflow(workflow_id: str) -> Row:
    return {"workflow_id": workflow_id}
