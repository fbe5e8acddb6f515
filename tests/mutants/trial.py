"""Find the fate of mutants: run the tests that execute the statement, the quickest first, until one fails.

A test that also fails when the statement is only written differently looks at its text, and kills nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from threading import Event, Lock
from typing import Any

from tests.mutants.equivalent import Listed
from tests.mutants.mutate import Mutant
from tests.mutants.results import Fate, Recording, Result, Results
from tests.mutants.slot import TESTS, Slot
from tests.mutants.statements import Statement

_RECORD_SECONDS = 60.0
# A test that is slower than this is not believed at once: under load it may fail without a mutant.
_PROMPT_SECONDS = 5.0
_TIMES = 6.0
_LEAST_SECONDS = 20.0
_OVER = "over its limit"


@dataclass(frozen=True, slots=True)
class Trial:
    """Records tests, and tries the mutants of statements."""

    recording: Recording
    results: Results
    equivalent: dict[str, Listed]
    budget: float
    """Tests of one mutant take at most so long together when nothing is changed (seconds)."""
    paths: Sequence[str] = TESTS
    """Tests that may be run."""
    _believed: dict[tuple[str, str], bool] = field(default_factory=dict)
    """Whether a test passes when the statement is only written differently, by the keys of statement and test."""

    def note_equivalent(self, statements: list[Statement]) -> None:
        """Keep what the list says of the mutants of these statements, and forget what it no longer says."""
        for statement in statements:
            reasons = entry.reasons if (entry := self.equivalent.get(statement.key)) else {}
            for change, result in self.results.of(statement).items():
                if result.fate is Fate.EQUIVALENT and change not in reasons:
                    self.results.add(statement, change, Result(Fate.SURVIVED))
            for change, why in reasons.items():
                self.results.add(statement, change, Result(Fate.EQUIVALENT, why=why))

    def record(self, folder: Path, slots: int, wanted: Callable[[str, bool], bool]) -> None:
        """Record the tests that are wanted, which are given by name and whether they start processes."""

        def work(slot: Slot, test: str) -> None:
            answer = slot.ask("record", tests=[test], limits=[_RECORD_SECONDS])
            if "died" not in answer:
                self.recording.add(test, answer)

        def tests(slot: Slot) -> Iterator[str]:
            return (
                test for test, starts in slot.tests.items() if wanted(test, starts) and not self.recording.knows(test)
            )

        self._share(folder, slots, tests, work)

    def run(self, folder: Path, slots: int, statements: list[Statement], *, again: bool) -> None:
        """Try all mutants whose fate is not known; with `again`, also those that have survived."""
        lock, killers = Lock(), dict[str, list[str]]()

        def mutants(_: Slot) -> Iterator[tuple[Statement, Mutant]]:
            for statement in statements:
                known = self.results.of(statement)
                for mutant in statement.mutants():
                    if mutant.change not in known or (again and known[mutant.change].fate is Fate.SURVIVED):
                        yield statement, mutant

        def work(slot: Slot, job: tuple[Statement, Mutant]) -> None:
            statement, mutant = job
            with lock:
                first = killers.setdefault(statement.key, [])[:6]
            result = self._fate(slot, statement, mutant, first)
            self.results.add(statement, mutant.change, result)
            if result.fate is Fate.KILLED:
                with lock:
                    killers[statement.key] = [
                        result.by,
                        *(each for each in killers[statement.key] if each != result.by),
                    ]
            print(
                f"{result.fate:10} {statement.name}: {mutant.change[:150]}  {result.by.rpartition('/')[2]}", flush=True
            )

        self._share(folder, slots, mutants, work)

    def _fate(self, slot: Slot, statement: Statement, mutant: Mutant, first: list[str]) -> Result:
        (error,) = slot.ask("prepare", statement=statement.key, texts=[mutant.text]).get("errors", [None])
        if error:
            return Result(Fate.INVALID, why=error)
        seconds = self.recording.passed()
        while True:
            tests = self._tests_of(slot, statement, first)
            answer = self._run(slot, tests, statement, mutant.text)
            if (by := answer.get("failed")) and (seconds[by].seconds > _PROMPT_SECONDS or _OVER in answer["why"]):
                answer = self._run(slot, [by], statement, mutant.text)
            if "failed" not in answer or self._believes(slot, statement, answer["failed"]):
                break
        if "died" in answer:
            return Result(Fate.TIMED_OUT, why=answer["died"])
        if "failed" not in answer:
            return Result(Fate.SURVIVED, tests=len(tests))
        fate = Fate.TIMED_OUT if _OVER in answer["why"] else Fate.KILLED
        return Result(fate, answer["failed"], answer["why"], len(tests))

    def _run(self, slot: Slot, tests: list[str], statement: Statement, text: str) -> dict[str, Any]:
        seconds = self.recording.passed()
        limits = [max(_LEAST_SECONDS, _TIMES * seconds[test].seconds) for test in tests]
        return slot.ask("run", tests=tests, limits=limits, statement=statement.key, mutant=text)

    def _believes(self, slot: Slot, statement: Statement, test: str) -> bool:
        place = statement.key, test
        if place not in self._believed:
            self._believed[place] = (
                not {"failed", "died"} & self._run(slot, [test], statement, statement.rewritten).keys()
            )
        return self._believed[place]

    def _tests_of(self, slot: Slot, statement: Statement, first: list[str]) -> list[str]:
        """Return the tests that execute the statement, those that have killed other mutants of it first."""
        passed = {
            test: each
            for test, each in self.recording.passed().items()
            if statement.key in each.executed and test in slot.tests and self._believed.get((statement.key, test), True)
        }
        first = [test for test in first if test in passed]
        others = sorted((test for test in passed if test not in first), key=lambda test: passed[test].seconds)
        chosen, left = [*first], self.budget - sum(passed[test].seconds for test in first)
        for test in others:
            left -= passed[test].seconds
            if left < 0:
                break
            chosen.append(test)
        return chosen

    def _share[Job](
        self, folder: Path, slots: int, jobs: Callable[[Slot], Iterator[Job]], work: Callable[[Slot, Job], None]
    ) -> None:
        """Have the slots do the jobs, which the first of them that has started names."""
        queue: Queue[Job] = Queue()
        filled, lock, stopped = False, Lock(), Event()

        def run(number: int) -> None:
            nonlocal filled
            with Slot(folder / f"slot{number}", self.paths) as slot:
                with lock:
                    if not filled:
                        for job in jobs(slot):
                            queue.put(job)
                        filled = True
                while not stopped.is_set():
                    try:
                        job = queue.get_nowait()
                    except Empty:
                        return
                    work(slot, job)

        with ThreadPoolExecutor(slots) as pool:
            try:
                for done in [pool.submit(run, number) for number in range(slots)]:
                    done.result()
            finally:
                # An interrupted run ends after the mutants that it is at.
                stopped.set()
