"""Export spans with OpenTelemetry's SDK; imported only if traces are on.

Spans are made when they have ended, several at a time, from times that are known by then, and their IDs are given. The
API of a tracer makes a span when it begins, in the process that ends it, and chooses its ID. So they are made as the
`ReadableSpan` that the SDK's batch processor and its exporter take.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping, Sequence
from uuid import UUID

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from orcheo_dispatch import __version__
from orcheo_dispatch.shared.ledger.model import Claim
from orcheo_dispatch.shared.logs.lines import log
from orcheo_dispatch.shared.logs.ration import Ration
from orcheo_dispatch.shared.metrics.model import ConsumerMetrics
from orcheo_dispatch.shared.traces.ids import SpanAddress, claim_span_id, new_span_id, trace_id_of
from orcheo_dispatch.shared.traces.sink import MAX_EVENTS, Kind
from orcheo_dispatch.shared.traces.variables import queue_size

_STOP_SECONDS = 3.0
_SAID_SECONDS = 600.0
_PHRASE = re.compile(r"[A-Za-z ]{1,40}")
"""The reason phrase of an HTTP status, which a collector chooses."""
_KINDS = {"internal": SpanKind.INTERNAL, "producer": SpanKind.PRODUCER, "consumer": SpanKind.CONSUMER}
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_FAILED, _UNSET = Status(StatusCode.ERROR), Status(StatusCode.UNSET)
_SCOPE = InstrumentationScope("orcheo_dispatch", __version__)


class Exporting:
    """Exports spans on a thread that starts with the first of them.

    A collector that is unavailable or slow costs spans, which are counted, and nothing else: at most as many wait as
    the queue of the SDK holds (`OTEL_BSP_MAX_QUEUE_SIZE`). Only for a process that does not fork.
    """

    def __init__(self, service: str, instance: UUID, metrics: ConsumerMetrics) -> None:
        """Read the variables of OpenTelemetry. Connects to nothing."""
        self._resource = _KnownResource(_resource(service, instance))
        self._sampler = TracerProvider(resource=self._resource, shutdown_on_exit=False).sampler
        self._delivery = _Delivery(OTLPSpanExporter(), queue_size(), metrics)
        self._processor: BatchSpanProcessor | None = None
        self._stopped = False
        self._lock = threading.Lock()

    def samples(self, run_id: str) -> bool:
        """Return whether spans of this run are exported: the sampler decides by the trace ID alone."""
        sampled = self._sampler.should_sample(None, trace_id_of(run_id), "claim")
        return sampled.decision is Decision.RECORD_AND_SAMPLE

    def put(
        self,
        name: str,
        claim: Claim,
        *,
        begin: int,
        end: int,
        attributes: Mapping[str, str | int],
        kind: Kind = "internal",
        root: bool = False,
        failed: bool = False,
        events: Sequence[tuple[str, int]] = (),
        events_left_out: int = 0,
        link: SpanAddress | None = None,
    ) -> None:
        """Export a span, or drop it if the queue is full; see `SpanSink.put`."""
        processor = self._started()
        if processor is None or not self._delivery.reserve():
            return
        trace_id, of_claim = trace_id_of(claim.run_id), claim_span_id(claim)
        span = ReadableSpan(
            name,
            context=_context(trace_id, of_claim if root else new_span_id()),
            parent=None if root else _context(trace_id, of_claim, is_remote=True),
            resource=self._resource,
            attributes={"orcheo.run.id": claim.run_id, "orcheo.run.fence": claim.fence, **attributes},
            events=_bounded(events, events_left_out),
            links=() if link is None else (Link(_context(link.trace_id, link.span_id, is_remote=True)),),
            kind=_KINDS[kind],
            status=_FAILED if failed else _UNSET,
            start_time=begin,
            end_time=max(begin, end),
            instrumentation_scope=_SCOPE,
        )
        processor.on_end(span)

    def stop(self) -> None:
        """Export what is left within `_STOP_SECONDS`, or drop it at once if the last export has failed."""
        with self._lock:
            self._stopped = True
            processor = self._processor
        if processor is None:
            return
        if self._delivery.failing:
            self._delivery.shutdown()
        # The SDK waits up to 30 s, and an export that it has begun cannot be interrupted.
        ending = threading.Thread(target=processor.shutdown, name="spans-stop", daemon=True)
        ending.start()
        ending.join(_STOP_SECONDS)
        self._delivery.shutdown()
        self._delivery.drop_the_rest()

    def _started(self) -> BatchSpanProcessor | None:
        if self._processor is None or self._stopped:
            with self._lock:
                if self._stopped:
                    return None
                if self._processor is None:
                    self._processor = BatchSpanProcessor(self._delivery)
        return self._processor


class _Delivery(SpanExporter):
    """Hands batches to the exporter, and counts what becomes of the spans."""

    def __init__(self, exporter: SpanExporter, limit: int, metrics: ConsumerMetrics) -> None:
        self._exporter = exporter
        self._limit = limit
        self._metrics = metrics
        self._reason = _Reason()
        self._ration = Ration(1, _SAID_SECONDS)
        self._lock = threading.Lock()
        self._waiting = 0
        self._lost = 0
        self._shut = False
        self.failing = False
        """Whether the last export failed."""

    def reserve(self) -> bool:
        """Return whether one more span may wait; count it as dropped otherwise."""
        with self._lock:
            if self._waiting < self._limit:
                self._waiting += 1
                return True
        self._lose(1, "dropped", "queue full")
        return False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch."""
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # noqa: BLE001 - whatever it is, it costs these spans and nothing else
            self._reason.last = type(error).__name__
            result = SpanExportResult.FAILURE
        with self._lock:
            # Not earlier: spans that are being sent are in memory as well.
            self._waiting = max(0, self._waiting - len(spans))
        if result is SpanExportResult.SUCCESS:
            self._metrics.spans_exported(len(spans))
            self._recover()
        else:
            self.failing = True
            self._lose(len(spans), "failed", self._reason.last)
        return result

    def shutdown(self) -> None:
        """Interrupt the wait before another attempt, and make none."""
        with self._lock:
            shut, self._shut = self._shut, True
        if not shut:
            self._exporter.shutdown()

    def drop_the_rest(self) -> None:
        """Count what will not be sent."""
        with self._lock:
            left, self._waiting = self._waiting, 0
        if left:
            self._lose(left, "dropped", "process ends")

    def _lose(self, spans: int, result: str, reason: str) -> None:
        self._metrics.spans_lost(spans, result)
        with self._lock:
            self._lost += spans
            lost = self._lost
        if self._ration.take() is not None:
            log.warning("spans_lost", reason=reason, lost=lost)

    def _recover(self) -> None:
        if self.failing:
            self.failing = False
            with self._lock:
                lost, self._lost = self._lost, 0
            log.info("span_export_recovered", lost=lost)


class _Reason(logging.Handler):
    """Keeps what the exporter last logged: the class of an error, or the status of HTTP. Its lines are not shown.

    It logs each attempt, and its lines may quote an address or what a collector answered.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = "unknown"
        logger = logging.getLogger("opentelemetry")
        logger.handlers = [self]
        logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        """Note why an attempt failed."""
        for each in record.args if isinstance(record.args, tuple) else ():
            if isinstance(each, BaseException):
                self.last = type(each).__name__
                return
            if isinstance(each, int):
                self.last = f"HTTP {each}"
                return
            if isinstance(each, str) and each != "spans" and _PHRASE.fullmatch(each):
                self.last = each
                return


class _KnownResource(Resource):
    """A resource that computes its hash once: the exporter asks for it for each span."""

    def __init__(self, resource: Resource) -> None:
        super().__init__(resource.attributes, resource.schema_url)
        self._known_hash = super().__hash__()

    def __hash__(self) -> int:
        return self._known_hash


def _bounded(events: Sequence[tuple[str, int]], left_out: int) -> Sequence[Event]:
    """Return the events, in the type by which the exporter learns how many are left out."""
    if not events:
        return ()
    bounded: BoundedList[Event] = BoundedList(MAX_EVENTS)
    bounded.extend([Event(each, timestamp=at) for each, at in events])
    bounded.dropped += left_out
    return bounded


def _context(trace_id: int, span_id: int, *, is_remote: bool = False) -> SpanContext:
    return SpanContext(trace_id, span_id, is_remote, _SAMPLED)


def _resource(service: str, instance: UUID) -> Resource:
    """Return what describes this process; `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` may name the service."""
    ours: dict[str, str] = {SERVICE_VERSION: __version__, SERVICE_INSTANCE_ID: str(instance)}
    if str(Resource.create().attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        ours[SERVICE_NAME] = service
    return Resource.create(ours)
