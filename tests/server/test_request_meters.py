"""Metrics of requests that have ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted_storaged.runtime.metering import Meters
from twisted_storaged.server.ended_requests import EndedRequest
from twisted_storaged.server.request_meters import RequestMeters

#: The errors that alerts are about exist from the start.
NO_ERRORS: dict[tuple[str, ...], int] = {("put", "NoFreeSlot"): 0, ("get", "DamagedObject"): 0}


def counted(*ended: EndedRequest) -> Mapping[str, Mapping[tuple[str, ...], Any]]:
    """The metrics after these requests."""
    meters = Meters()
    RequestMeters(meters).add(ended)
    return {one.family.name: dict(one.values) for one in meters.snapshot()}


def test_one() -> None:
    """A request is counted by its operation, status and ending, with its bytes and durations."""
    metrics = counted(
        EndedRequest(
            0, None, operation="put", status=200, outcome="complete", received=5, sent=7, seconds=2, first_byte=1
        )
    )
    assert metrics["storaged_requests"] == {("put", "2xx", "complete"): 1}
    assert metrics["storaged_received_bytes"] == {("put",): 5}
    assert metrics["storaged_sent_bytes"] == {("put",): 7}
    assert metrics["storaged_request_seconds"]["put",][-1] == 2
    assert metrics["storaged_request_first_byte_seconds"]["put",][-1] == 1
    assert metrics["storaged_request_errors"] == NO_ERRORS


def test_failed() -> None:
    """A failure is counted by the name of its error."""
    refused = EndedRequest(0, None, operation="put", status=503, outcome="complete", reason="NoFreeSlot")
    assert counted(refused, refused)["storaged_request_errors"] == NO_ERRORS | {("put", "NoFreeSlot"): 2}


def test_broken_off() -> None:
    """A request without a response has no status and no first byte, and the reason of a cut is no label."""
    metrics = counted(
        EndedRequest(0, None, operation="get", outcome="client gone"),
        EndedRequest(0, None, operation="get", status=200, outcome="cut: S3 said 5"),
        EndedRequest(0, None, status=400, outcome="cut: no request"),
    )
    assert metrics["storaged_requests"] == {
        ("get", "none", "client_gone"): 1,
        ("get", "2xx", "cut"): 1,
        ("none", "4xx", "cut"): 1,
    }
    assert metrics["storaged_request_first_byte_seconds"] == {}
