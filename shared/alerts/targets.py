"""Where alerts are sent: the URLs of ORCHEO_ALERTS_URLS, which the library Apprise understands.

Apprise is imported only if there are URLs. What it logs or returns may quote a URL or an answer, so none of its texts
leaves this module: of a failure we say its kind, or the status of an HTTP answer.
"""

from __future__ import annotations

import logging
import re
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orcheo_dispatch.shared.alerts.messages import Message
from orcheo_dispatch.shared.errors import SettingsError
from orcheo_dispatch.shared.settings.model import Settings
from orcheo_dispatch.shared.text.urls import split_urls

if TYPE_CHECKING:
    from apprise.plugins.base import NotifyBase

VARIABLE = "ORCHEO_ALERTS_URLS"
_STATUS = re.compile(r"error=(?P<status>[1-5]\d\d)\b")
_LIBRARY = "apprise"


@dataclass(frozen=True, slots=True)
class Target:
    """One URL. Its name is its place in the setting and its scheme, such as `2 (slack)`."""

    name: str
    _service: NotifyBase = field(repr=False)

    def send(self, message: Message) -> str | None:
        """Send a message; return why it was not accepted, in a few words without secrets, or None. Never raises.

        Connecting, and each wait for an answer, take at most 4 s, unless the URL says otherwise (`cto`, `rto`).
        """
        import apprise

        _LISTENER.begin()
        try:
            kind = apprise.NotifyType(message.kind.value)
            form = apprise.NotifyFormat.TEXT
            if self._service.notify(title=message.title, body=message.body, notify_type=kind, body_format=form):
                return None
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything, and its text may quote the URL
            return type(error).__name__
        return _LISTENER.reason()


def targets_of(settings: Settings) -> list[Target]:
    """Return the targets; none if the setting is unset.

    Raises `SettingsError`, which quotes no URL, if one is not understood or if Apprise is not installed.
    """
    if settings.alerts_urls is None:
        return []
    # It imports a module that Python 3.13 no longer has, if that is there: some of it when a target is made.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"apprise\b")
    try:
        import apprise
    except ImportError as error:
        raise SettingsError(f"{VARIABLE} needs the package apprise: pip install 'orcheo-dispatch[alerts]'") from error

    _LISTENER.listen()
    asset = apprise.AppriseAsset(app_id="orcheo-dispatch", app_desc="orcheo-dispatch", async_mode=False)
    urls = split_urls(settings.alerts_urls.get_secret_value())
    found = []
    for number, url in enumerate(urls, 1):
        scheme = url.partition("://")[0].lower()
        with warnings.catch_warnings():
            # Its part for mail imports a module that Python 3.13 no longer has, if that is there.
            warnings.simplefilter("ignore", DeprecationWarning)
            service = apprise.Apprise.instantiate(url, asset=asset)
        if service is None:
            raise SettingsError(
                f"{VARIABLE} has an invalid value: expected URLs of Apprise, such as json://host/path; "
                f"{_place(number, urls)} is not understood"
            )
        found.append(Target(f"{number} ({scheme})", service))
    return found


def _place(number: int, urls: Sequence[str]) -> str:
    return "the URL" if len(urls) == 1 else f"URL {number} of {len(urls)}"


class _Listener(logging.Handler):
    """Takes what Apprise logs, in the thread that sends, and keeps the kind of a failure and no text."""

    def __init__(self) -> None:
        super().__init__()
        self._found = threading.local()

    def listen(self) -> None:
        """Take the log lines of Apprise from now on: they go nowhere else."""
        logger = logging.getLogger(_LIBRARY)
        logger.propagate = False
        if self not in logger.handlers:
            logger.addHandler(self)
        logger.setLevel(logging.WARNING)

    def begin(self) -> None:
        """Forget what this thread did before."""
        self._found.reason = None

    def reason(self) -> str:
        """Return why the last message of this thread was not accepted."""
        return getattr(self._found, "reason", None) or "not accepted"

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001 - a library's template and its arguments may not fit
            return
        if status := _STATUS.search(text):
            self._found.reason = f"HTTP status {status['status']}"
        # Of mail it says so for a refused login or recipient as well.
        elif ("onnection error" in text and "submitting email" not in text) or "Socket Exception" in text:
            self._found.reason = "no answer"


_LISTENER = _Listener()
