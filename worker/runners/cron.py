"""Have the executor dispatch due cron triggers, in a runner reserved for that."""

from __future__ import annotations

import asyncio
from typing import Any

from orcheo_dispatch.shared.cron.report import CronReport
from orcheo_dispatch.shared.errors import DispatchError
from orcheo_dispatch.worker.frames import Close, Cron, CronDone
from orcheo_dispatch.worker.runners.runner import Runner
from orcheo_dispatch.worker.runners.starting import Starter

CRON_SECONDS = 300.0


class CronRunner:
    """Dispatch cron triggers in one runner. For one event loop."""

    def __init__(self, starter: Starter) -> None:
        self._starter = starter
        self._runner: Runner | None = None
        self._calls = 0
        self._answers: dict[int, asyncio.Future[CronReport]] = {}

    @property
    def exists(self) -> bool:
        """Whether the runner's process exists."""
        return self._runner is not None

    async def dispatch(self) -> CronReport:
        """Dispatch due cron triggers and return the result. Never raises."""
        try:
            runner = self._runner or await self._starter.for_cron(self._adopt)
        except DispatchError as error:
            return CronReport("failed", reason=str(error))
        self._calls += 1
        answer = self._answers[self._calls] = asyncio.get_running_loop().create_future()
        runner.send(Cron(self._calls))
        try:
            async with asyncio.timeout(CRON_SECONDS):
                report: CronReport = await answer
                return report
        except TimeoutError:
            runner.kill("Runner was ended because the dispatch of cron triggers took too long")
            return CronReport("failed", reason=f"not finished within {CRON_SECONDS:g} s")

    def take(self, frame: CronDone) -> None:
        """Accept an answer of the runner."""
        answer = self._answers.pop(frame.number, None)
        if answer is not None and not answer.done():
            outcome: Any = frame.outcome
            answer.set_result(CronReport(outcome, frame.runs, frame.skipped, frame.reason))

    def gone(self, runner: Runner) -> None:
        """Note that a runner has ended, which may be the one for cron triggers."""
        if runner is not self._runner:
            return
        self._runner = None
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result(CronReport("failed", reason=runner.exit_text()))
        self._answers.clear()

    def close(self, *, at_once: bool = False) -> None:
        """End the process: in order, or at once."""
        if self._runner is not None and at_once:
            self._runner.kill(None)
        elif self._runner is not None:
            self._runner.send(Close())

    def _adopt(self, runner: Runner) -> None:
        self._runner = runner
