"""A thread that others rely on ends when it is told to, and for no other reason."""

from __future__ import annotations

import queue
import threading

import pytest

from orcheo_dispatch.shared.process.lasting import LastingThread
from tests.support.processes.processes import until


@pytest.mark.parametrize("error", [ValueError(), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), MemoryError()])
def test_thread_goes_on_whatever_a_turn_raises(error: BaseException) -> None:
    turns: queue.SimpleQueue[int] = queue.SimpleQueue()

    def turn() -> None:
        turns.put(1)
        raise error

    thread = LastingThread("test", turn)
    thread.start()
    assert [turns.get(timeout=10) for _ in range(3)] == [1, 1, 1]
    assert thread.makes_progress
    thread.stop(timeout=10)
    assert not thread.makes_progress


def test_thread_goes_on_where_the_error_cannot_even_be_described() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise SystemExit(1)

        __repr__ = __str__

    turns = threading.Semaphore(0)

    def turn() -> None:
        turns.release()
        raise Mute

    thread = LastingThread("test", turn)
    thread.start()
    assert all(turns.acquire(timeout=10) for _ in range(3))
    thread.stop(timeout=10)


def test_thread_that_is_stuck_is_seen() -> None:
    go = threading.Event()
    thread = LastingThread("test", lambda: _wait(go))
    thread.start()
    until(lambda: not thread.makes_progress, what="it is seen", seconds=15)
    go.set()
    until(lambda: thread.makes_progress, what="it turns again", seconds=5)
    thread.stop(timeout=10)


def test_stop_waits_until_nothing_is_left_to_do() -> None:
    left = [3, 2, 1]
    thread = LastingThread("test", left.clear, idle=lambda: not left)
    thread.start()
    thread.stop(timeout=10)
    assert left == []


def _wait(go: threading.Event) -> None:
    go.wait(60)
