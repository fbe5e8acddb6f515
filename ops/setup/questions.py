"""Ask for the settings, one after the other; check each answer as it is given, then connect with it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import typer

from orcheo_dispatch.ops.host.findings import Finding
from orcheo_dispatch.ops.setup.proof import prove, wrong
from orcheo_dispatch.ops.setup.variables import (
    BROKER,
    DSN,
    INTERVAL,
    SLOTS,
    TOKEN,
    Known,
    accepted,
    default_of,
    has_password,
    shown,
    with_password,
)
from orcheo_dispatch.shared.errors import BrokerError, DatabaseError, DispatchError, SettingsError
from orcheo_dispatch.shared.text.plain import plain, say
from orcheo_dispatch.shared.text.redaction import keep_secret

_TOKEN_BYTES = 32
_TEXTS = {
    DSN: "Orcheo's database, as its API has it",
    BROKER: "Redis of Orcheo's Celery app",
    SLOTS: "Redis of the run slots",
    INTERVAL: "Seconds between two polls",
}


def ask(known: Known, *, connect: bool, token: bool | None) -> dict[str, str]:
    """Return the answers by variable. Raises `typer.Abort` at Ctrl-C or the end of the input."""
    answers: dict[str, str] = {}
    for name in (DSN, BROKER, SLOTS, INTERVAL):
        answers[name] = _ask_until_right(name, known, answers, connect=connect)
    if token is None and TOKEN not in known.defaults:
        token = typer.confirm("Generate a token that /metrics and the status page require?", default=True)
    return {**answers, **_token(known, token)}


def take(known: Known, *, connect: bool, token: bool | None) -> dict[str, str]:
    """Return the answers without a question: what is known, else the defaults.

    Raises `SettingsError` for what is missing or invalid, `DatabaseError` or `BrokerError` for what cannot be used.
    """
    answers: dict[str, str] = {}
    for name in (DSN, BROKER, SLOTS, INTERVAL):
        value = default_of(name, known, answers)
        if value is None:
            raise SettingsError(f"{name} is not set: set it in the environment, or name a file with --env-file")
        answers[name] = accepted(name, value)
        if connect and name != INTERVAL:
            findings = prove(name, _all_addresses(answers))
            _show(findings)
            if findings_wrong := wrong(findings):
                raise _error(findings_wrong[0])
    return {**answers, **_token(known, token)}


def _ask_until_right(name: str, known: Known, answers: Mapping[str, str], *, connect: bool) -> str:
    while True:
        default = default_of(name, known, answers)
        try:
            answer = _ask_once(name, default)
        except SettingsError as error:
            say(f"  {plain(str(error))}")
            continue
        if not connect or name == INTERVAL or (name == SLOTS and answer == answers[BROKER]):
            return answer
        findings = prove(name, _all_addresses({**answers, name: answer}))
        _show(findings)
        if not wrong(findings) or typer.confirm("Keep this answer although it does not work now?", default=False):
            return answer


def _ask_once(name: str, default: str | None) -> str:
    """Ask one question. Raises `SettingsError` for an invalid answer."""
    offered = f" [{plain(shown(name, default))}]" if default is not None else ""
    text: str = typer.prompt(f"{_TEXTS[name]}, {name}{offered}", default=default or "", show_default=False)
    answer = accepted(name, text)
    if name == INTERVAL or answer == default or has_password(name, answer):
        return answer
    # What is typed here is not shown.
    password: str = typer.prompt(
        "  its password, not shown (none: Enter)", default="", show_default=False, hide_input=True
    )
    if not password:
        return answer
    keep_secret(password)
    return accepted(name, with_password(answer, password))


def _token(known: Known, wanted: bool | None) -> dict[str, str]:
    """Return the token that is known, or a new one; none if it is not wanted."""
    if wanted is False:
        return {}
    if kept := known.defaults.get(TOKEN):
        return {TOKEN: accepted(TOKEN, kept)}
    return {TOKEN: secrets.token_urlsafe(_TOKEN_BYTES)}


def _all_addresses(answers: Mapping[str, str]) -> dict[str, str]:
    """Return the answers with a value for each address, as a check needs it."""
    broker = answers.get(BROKER, "redis://127.0.0.1:1/0")
    return {BROKER: broker, SLOTS: broker, **answers}


def _show(findings: list[Finding]) -> None:
    for each in findings:
        fix = f"; {each.mend}" if each.mend else ""
        say(f"  {each.grade.value}: {plain(each.what)}: {plain(each.found)}{plain(fix)}")


def _error(finding: Finding) -> DispatchError:
    kind = DatabaseError if finding.exit_code == DatabaseError.exit_code else BrokerError
    return kind(f"{finding.what}: {finding.found}; nothing was written (--no-check does not connect)")
