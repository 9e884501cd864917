"""What is under way in the daemon, as the document that /status.json, `storaged status` and the page show.

Each process makes a `ProcessStatus` of its own; `Status` is made of those of all processes.
"""

from __future__ import annotations

from msgspec import Struct


class Transfer(Struct):
    """A request for an object that has not ended.

    Attributes:
        id: of the request.
        client: the address of the client.
        operation: such as `put`.
        size: of its body, in bytes: of a PUT's as declared, of a GET's as announced; None if it is not known.
        done: how many of these have passed.
        rate: bytes per second, lately.
        age: seconds since the end of its head.
        holds_slot: whether it holds a put slot.
        waits_for: who is to act next: `client`, `S3`, `disk`, or `storaged`.
        worker: the id of the process that serves it.
    """

    id: str
    client: str
    operation: str
    bucket: str
    key: str
    size: int | None
    done: int
    rate: float
    age: float
    holds_slot: bool
    waits_for: str
    worker: int


class Refusal(Struct):
    """A request that was refused or failed.

    Attributes:
        at: when it ended, in seconds since the epoch.
        status: of the response; None without one.
        reason: the name of the error.
    """

    at: float
    id: str
    client: str
    operation: str
    bucket: str
    key: str
    status: int | None
    reason: str


class BucketStatus(Struct):
    """Whether a bucket answers.

    Attributes:
        kind: `local` or `s3`.
        ready: whether its last check succeeded, lately enough.
        reason: why not; empty if it is ready. It names no host, folder or key.
        checked: seconds since it was last known.
    """

    name: str
    kind: str
    ready: bool
    reason: str
    checked: float


class Rule(Struct):
    """A rule of the policy, as `routing.Rule` has it."""

    prefix: str
    max_put: int
    bucket: str
    slots: int | None


class Interval(Struct):
    """Bytes of bodies that were received and sent within `status.INTERVAL` seconds, from `at` on (since the epoch)."""

    at: int
    received: int
    sent: int


class ProcessStatus(Struct):
    """What a process tells of itself.

    Attributes:
        started: when it began to serve, in seconds since the epoch.
        draining: whether it stops.
        connections: of clients that are open.
        requests_under_way: requests that have not ended, of any kind.
        slots_taken: the put slots that it holds.
        transfers: the requests for objects among them, the oldest first; at most MOST_TRANSFERS.
        refusals: the last ones, the latest first.
        intervals: what has passed, the latest last; of the last ten minutes.
    """

    pid: int
    started: float
    draining: bool
    connections: int
    requests_under_way: int
    slots_taken: int
    transfers: list[Transfer]
    refusals: list[Refusal]
    intervals: list[Interval]


class Status(Struct):
    """What is under way in all processes, merged.

    Attributes:
        at: when this was made, in seconds since the epoch.
        versions: of storaged, python and twisted.
        slots_taken, slots: put slots that are taken, and all of them.
        workers: the processes, without their lists.
    """

    at: float
    versions: dict[str, str]
    slots_taken: int
    slots: int
    connections: int
    requests_under_way: int
    transfers: list[Transfer]
    refusals: list[Refusal]
    intervals: list[Interval]
    buckets: list[BucketStatus]
    policies: list[Rule]
    workers: list[ProcessStatus]


#: Seconds of an Interval, and how many are kept.
INTERVAL, INTERVALS = 5, 120
#: Transfers of a process, and refusals, that are told.
MOST_TRANSFERS, MOST_REFUSALS = 256, 20
