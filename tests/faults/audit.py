"""All that is there, held against the model, while nobody writes; and the figures of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tests.daemon import Daemon
from tests.faults.clients import Seen, Tally, check_state
from tests.faults.model import Model
from tests.faults.places import Sizes
from twisted_storaged.conformance.wire import Answer, Connection, head

#: What each run counts, beside what it did.
FAULTS = ("lost", "torn", "error")


def audit(daemon: Daemon, model: Model, tally: Tally) -> None:
    """Hold the list and all bytes against the model, and let it go on from what was found."""
    sizes = listed(daemon)
    for key in sorted({*model.keys(), *sizes}):
        status, _, body = _get(daemon, f"/storage/get/{key}")
        if (len(body) if status == 200 else None) != sizes.get(key):
            tally.fault("error", f"{key} is listed with {sizes.get(key)} bytes, and read with {status}, {len(body)}")
        model.found(key, check_state(model, tally, Seen(key, status, body), model.possible(key)))


def listed(daemon: Daemon) -> Sizes:
    """The sizes of all objects in bytes, by key."""
    return {item["key"]: item["size"] for item in json.loads(_get(daemon, "/storage/list").body)["objects"]}


def print_figures(title: str, tally: Tally, orphans: int, more: Sequence[str] = ()) -> None:
    """What was done, and what was found."""
    counts = {**dict.fromkeys(FAULTS, 0), **tally.done, "orphans left": orphans}
    print(title)
    print("".join(f"  {kind:<20}{number:>10,}\n" for kind, number in sorted(counts.items())), end="")
    print("".join(f"  {line}\n" for line in [*more, *tally.faults[:20]]), end="", flush=True)


def _get(daemon: Daemon, path: str) -> Answer:
    with Connection(("127.0.0.1", daemon.port)) as connection:
        connection.wait(120)
        connection.send(head("GET", path))
        return connection.final()
