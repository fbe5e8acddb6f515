"""The text of a message: what is wrong, where, since when, and where to read on.

It holds names of alerts, of hosts and of steps, and counts. Never an ID of a run, of a workflow or of a workspace, and
never an input, an output or the text of an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from orcheo_dispatch.shared.alerts.rules import Rule, Severity
from orcheo_dispatch.shared.text.plain import plain

_PAGE = "runbook.html"


class Kind(StrEnum):
    """How a target shows a message; the values are Apprise's."""

    FAILURE = "failure"
    WARNING = "warning"
    SUCCESS = "success"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Key:
    """Which message: of which alert and subject, and whether it says that the alert has ended."""

    name: str
    subject: str = ""
    resolved: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    """One message."""

    key: Key
    title: str
    body: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Origin:
    """Who sends: the name of the installation, and the link to the runbook."""

    installation: str
    link: str

    def alert(self, rule: Rule, subject: str, value: float, seconds: float, *, again: bool) -> Message:
        """Return the message that an alert fires; `seconds`: for how long its condition has been true."""
        summary = _summary(rule, subject, value)
        since = f"For {duration(seconds)}." if seconds >= 1 else "Since now."
        kind = Kind.FAILURE if rule.severity is Severity.CRITICAL else Kind.WARNING
        still = "still " if again else ""
        title = f"[{still}{rule.severity}] {rule.name}: {summary}"
        return Message(Key(rule.name, subject), title, self._body(f"{summary}. {since}", rule), kind)

    def recovery(self, rule: Rule, subject: str, value: float, seconds: float) -> Message:
        """Return the message that an alert has ended; `seconds`: for how long its condition was true."""
        summary = f"resolved after {duration(seconds)}"
        about = f" ({plain(subject)})" if subject else ""
        title = f"[resolved] {rule.name}{about}: {summary}"
        body = self._body(f"{summary.capitalize()}. It was: {_summary(rule, subject, value)}.", rule)
        return Message(Key(rule.name, subject, resolved=True), title, body, Kind.SUCCESS)

    def trial(self) -> Message:
        """Return the message of `orcheo-dispatch alerts test`."""
        title = "[test] orcheo-dispatch: alerts arrive here"
        return Message(
            Key("test"), title, f"Sent by hand. Nothing is wrong.\nInstallation: {self.installation}", Kind.INFO
        )

    def _body(self, text: str, rule: Rule) -> str:
        return f"{text}\nInstallation: {self.installation}\nWhat to do: {link_of(rule.name, self.link)}"


def link_of(name: str, base: str) -> str:
    """Return the link to the section of an alert; `base`: the runbook, or the documentation site if it ends with /."""
    page = f"{base}{_PAGE}" if base.endswith("/") else base
    return f"{page}#{name.lower()}"


def duration(seconds: float) -> str:
    """Return a duration in at most two units: 45 s, 12 min, 3 h 5 min, 2 d 4 h."""
    minutes = int(seconds) // 60
    if not minutes:
        return f"{int(seconds)} s"
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min"
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h" if hours else f"{days} d"
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def _summary(rule: Rule, subject: str, value: float) -> str:
    figure = f"{value:.0%}" if rule.percent else f"{value:,.0f}"
    return rule.text.format(value=figure, subject=plain(subject))
