"""Let operators act on the status page, and record each action and each attempt that is refused.

Actions have connections of their own with short timeouts, and one is executed at a time: no poll waits for them.
"""

from __future__ import annotations

import threading
from functools import partial
from http import HTTPStatus

import msgspec

from orcheo_dispatch.dispatcher.page.acts import KINDS, Act, Outcome
from orcheo_dispatch.dispatcher.page.answers import json_answer
from orcheo_dispatch.dispatcher.page.gate import Gate, Refusal
from orcheo_dispatch.shared.database.connections import make_engine, transaction
from orcheo_dispatch.shared.errors import DatabaseError, RefusedError
from orcheo_dispatch.shared.health.probe import ACTIONS
from orcheo_dispatch.shared.health.routes import Answer, Request, Route
from orcheo_dispatch.shared.ledger.operators.operations import Author, Done, Interface, record_operation
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.logs.ration import Ration
from orcheo_dispatch.shared.settings.model import Settings

SESSION = "/session.json"
REFUSALS_PER_MINUTE = 10
"""Maximum number of refused attempts that one process records; the others are counted."""
_TURN_SECONDS = 2.0
_RECORD_MILLISECONDS = 2_000
_LOCK_SECONDS = 1.0


class Actions:
    """The actions of one dispatcher. It owns its engine, which connects when it is first used."""

    def __init__(self, settings: Settings) -> None:
        self._gate = Gate(settings)
        # One connection for the action in progress, one for the log of refused attempts.
        self._engine = make_engine(settings, role="page actions", connections=2)
        self._acting, self._recording = threading.Lock(), threading.Lock()
        self._ration = Ration(REFUSALS_PER_MINUTE)

    @property
    def on(self) -> bool:
        """Whether anybody may act."""
        return self._gate.on

    def routes(self) -> dict[str, Route]:
        """Return a route per action, which checks itself who asks, and `/session.json`."""
        return {SESSION: self._session, **{f"{ACTIONS}{name}": partial(self._act, name) for name in KINDS}}

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def _session(self, request: Request) -> Answer:
        user = self._gate.user_of(request)
        if isinstance(user, Refusal):
            return json_answer({"error": user.because}, user.status)
        value, cookie = self._gate.sessions.begin(request, user)
        return json_answer({"by": user, "csrf": value}, Set_Cookie=cookie)

    def _act(self, name: str, request: Request) -> Answer:
        user = self._gate.admit(request)
        if isinstance(user, Refusal):
            return self._refuse(name, request, user)
        try:
            body = msgspec.json.decode(request.body, type=KINDS[name].body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            # What the client sent may be in the text, so the log has another one.
            return self._refuse(
                name,
                request,
                Refusal(HTTPStatus.BAD_REQUEST, "The body is invalid."),
                by=user,
                said=f"The body is invalid: {error}.",
            )
        return self._apply(name, body, Author(user, Interface.PAGE, body.why))

    def _apply(self, name: str, body: Act, author: Author) -> Answer:
        if not self._acting.acquire(timeout=_TURN_SECONDS):
            return json_answer({"error": "Another action is in progress. Try again."}, HTTPStatus.SERVICE_UNAVAILABLE)
        try:
            outcome = body.apply(self._engine, author)
        except DatabaseError as error:
            log.warning("page_action_failed", action=name, by=author.by, reason=error.what)
            refused = isinstance(error, RefusedError)
            text = "Postgres does not accept this value" if refused else "Postgres did not do it; see the operations"
            status = HTTPStatus.CONFLICT if refused else HTTPStatus.SERVICE_UNAVAILABLE
            return json_answer({"error": f"{text}: {error.what}."}, status)
        finally:
            self._acting.release()
        log.info("page_action", action=name, by=author.by, changed=outcome.changed, refused=len(outcome.refused))
        return json_answer(_told(outcome))

    def _refuse(
        self, name: str, request: Request, refusal: Refusal, *, by: str | None = None, said: str | None = None
    ) -> Answer:
        """Record an attempt, without anything that the client sent, and answer why it is refused."""
        left_out = self._ration.take()
        if left_out is not None:
            author = Author(by or f"unknown {request.client}", Interface.PAGE)
            self._record(name, author, {"asked": name, "refused_because": refusal.because, **left_out})
        headers = {"WWW_Authenticate": "Bearer"} if refusal.status is HTTPStatus.UNAUTHORIZED else {}
        if refusal.status is HTTPStatus.METHOD_NOT_ALLOWED:
            headers = {"Allow": "POST"}
        return json_answer({"error": said or refusal.because}, refusal.status, **headers)

    def _record(self, name: str, author: Author, details: dict[str, object]) -> None:
        log.warning("page_action_refused", action=name, by=author.by, reason=str(details["refused_because"]))
        done = Done(KINDS[name].logged, refused=1, details=details)
        if not self._recording.acquire(timeout=_LOCK_SECONDS):
            return
        try:
            with transaction(
                self._engine, timeout_milliseconds=_RECORD_MILLISECONDS, lock_timeout=_LOCK_SECONDS
            ) as connection:
                record_operation(connection, author, done)
        except DatabaseError as error:
            log.warning("page_refusal_not_recorded", action=name, reason=error.what)
        finally:
            self._recording.release()


def _told(outcome: Outcome) -> dict[str, object]:
    refused = [{"run_id": run_id, "because": because} for run_id, because in outcome.refused.items()]
    return {"changed": outcome.changed, "refused": refused}
