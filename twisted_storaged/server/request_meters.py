"""Metrics of requests that have ended."""

from __future__ import annotations

from collections.abc import Sequence

from twisted_storaged.runtime.metering import Meters
from twisted_storaged.server.ended_requests import EndedRequest


class RequestMeters:
    """Counts requests by what they asked for and how they ended. None of its labels has what a client has sent."""

    def __init__(self, meters: Meters) -> None:
        operation = ("operation",)
        self._requests = meters.counter(
            "storaged_requests", "Requests that have ended.", ("operation", "status", "outcome")
        )
        self._errors = meters.counter("storaged_request_errors", "Requests that failed.", ("operation", "reason"))
        # From the start, as Prometheus does not see the increase with which a series begins.
        self._errors.add(0, "put", "NoFreeSlot")
        self._errors.add(0, "get", "DamagedObject")
        self._seconds = meters.histogram(
            "storaged_request_seconds", "Time from the end of the head of a request to its end.", operation
        )
        self._first_byte = meters.histogram(
            "storaged_request_first_byte_seconds",
            "Time from the end of the head of a request to the beginning of its response.",
            operation,
        )
        self._received = meters.counter("storaged_received_bytes", "Bytes of bodies of requests.", operation)
        self._sent = meters.counter("storaged_sent_bytes", "Bytes of bodies of responses.", operation)

    def add(self, ended: Sequence[EndedRequest]) -> None:
        """Count requests that have ended."""
        for request in ended:
            operation = request.operation
            status = "none" if request.status is None else f"{request.status // 100}xx"
            # A reason of a cut is for the log.
            outcome = request.outcome.partition(":")[0].replace(" ", "_")
            self._requests.values[operation, status, outcome] += 1
            if request.reason:
                self._errors.values[operation, request.reason] += 1
            self._seconds.observe(request.seconds, operation)
            if request.first_byte is not None:
                self._first_byte.observe(request.first_byte, operation)
            self._received.values[operation,] += request.received
            self._sent.values[operation,] += request.sent
