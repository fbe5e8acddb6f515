"""Publish claims: one message each, `(run_id, fence)` and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from celery import Celery
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from shared.broker import EXECUTE_RUN, broker_errors
from shared.errors import BrokerError
from shared.ledger import Claim

_TRIES = 3


class Publisher:
    """Sends the messages that workers take runs from."""

    def __init__(self, app: Celery, queue: str) -> None:
        self._app = app
        self._queue = queue

    def publish(self, claims: Sequence[Claim]) -> tuple[list[Claim], BrokerError | None]:
        """Publish claims in order; return those that went out, and the error that stopped it, if any.

        A message may have reached Redis although its sending failed. That is harmless: its claim is
        released, the next claim has a higher fence, and the stray message begins nothing.
        """
        published: list[Claim] = []
        try:
            with broker_errors(), self._app.producer_or_acquire() as producer:
                for claim in claims:
                    for attempt in self._retrying():
                        with attempt, broker_errors():
                            self._send(claim, producer)
                    published.append(claim)
        except BrokerError as error:
            return published, error
        return published, None

    def _send(self, claim: Claim, producer: object) -> None:
        self._app.send_task(
            EXECUTE_RUN,
            args=(claim.run_id, claim.fence),
            queue=self._queue,
            producer=producer,
            retry=False,
            ignore_result=True,
            # The body is base64: here reconcile can read which claim a message stands for.
            headers={"claim": [claim.run_id, claim.fence]},
        )

    @staticmethod
    def _retrying() -> Retrying:
        return Retrying(
            retry=retry_if_exception_type(BrokerError),
            wait=wait_exponential_jitter(initial=0.05, max=0.5, jitter=0.05),
            stop=stop_after_attempt(_TRIES),
            reraise=True,
        )
