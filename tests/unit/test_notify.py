"""What the service manager is told, over a real socket."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orcheo_dispatch.shared.process.notify import ServiceManager
from orcheo_dispatch.shared.process.progress import ProgressWatch, Watched
from tests.support.servers.listening import Listener


@pytest.mark.parametrize("abstract", [True, False])
def test_ready_status_and_stopping_are_heard(tmp_path: Path, abstract: bool) -> None:
    with Listener(None if abstract else tmp_path) as listener:
        manager = ServiceManager({"NOTIFY_SOCKET": listener.address})
        manager.ready("at work")
        manager.status("at work")
        manager.status("resting")
        manager.stopping("ending", seconds=95.5)
        listener.hears("STOPPING=1")
        assert listener.messages == [
            "READY=1\nSTATUS=at work",
            "STATUS=resting",
            "STOPPING=1\nSTATUS=ending\nEXTEND_TIMEOUT_USEC=95500000",
        ]


def test_watchdog_is_fed_in_time_and_no_more_often_than_need_be() -> None:
    with Listener() as listener:
        manager = ServiceManager({"NOTIFY_SOCKET": listener.address, "WATCHDOG_USEC": "400000"})
        assert manager.watchdog == 0.4
        for _ in range(100):
            manager.feed()
        manager.ready("fed once")
        listener.hears("READY=1")
        assert listener.count("WATCHDOG=1") == 1


@pytest.mark.parametrize("watchdog", [{}, {"WATCHDOG_USEC": "much"}, {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}])
def test_watchdog_of_nobody_or_of_another_process_is_not_fed(watchdog: dict[str, str]) -> None:
    with Listener() as listener:
        manager = ServiceManager({"NOTIFY_SOCKET": listener.address, **watchdog})
        manager.feed()
        manager.ready("not fed")
        listener.hears("READY=1")
        assert listener.count("WATCHDOG=1") == 0


def test_children_do_not_inherit_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    monkeypatch.setenv("WATCHDOG_USEC", "1")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    ServiceManager()
    script = "import os; print([name for name in os.environ if name.startswith(('NOTIFY', 'WATCHDOG'))])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout == b"[]\n"


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "@nobody-listens-here", "vsock:2:1234", "relative"])
def test_service_manager_that_does_not_listen_is_no_matter(address: str) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
    manager.ready("at work")
    manager.feed()
    manager.stopping("ending")


def test_watch_feeds_while_nothing_is_stalled() -> None:
    fed: list[None] = []
    remedies: list[None] = []
    well = True
    watched = Watched("it", lambda: well, (lambda: remedies.append(None),), patience=0)
    watch = ProgressWatch(watched, on_well=lambda: fed.append(None))
    watch.look()
    assert (len(fed), len(remedies)) == (1, 0)
    well = False
    watch.look()
    watch.look()
    assert (len(fed), len(remedies)) == (1, 2)
    well = True
    watch.look()
    assert len(fed) == 2
