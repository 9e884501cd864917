"""The audit: compares everything that is stored with the model, while nobody writes; and prints figures."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence

from tests.daemon import Daemon
from tests.faults.clients import Seen, Tally, check_state
from tests.faults.model import Model
from tests.faults.places import Place, Sizes
from twisted_storaged.conformance.raw_http import Connection, Response, head

#: The kinds of faults, which are printed also if there were none.
FAULTS = ("lost", "torn", "refused", "error")
#: Seconds within which the list and the objects must agree.
SETTLE_SECONDS = 3.0


def audit(place: Place, model: Model, tally: Tally) -> None:
    """Compare the list and all objects with the model, which then continues from what was found."""
    end = time.monotonic() + SETTLE_SECONDS
    sizes, found = _look(place.daemon, model)
    while _is_settling(model, sizes, found) and time.monotonic() < end:
        time.sleep(0.2)
        sizes, found = _look(place.daemon, model)
    for key, seen in found.items():
        possible = model.possible(key)
        state = check_state(model, tally, seen, possible)
        if _agree(sizes, seen):
            model.found(key, state)
        elif len(possible) > 1 and not place.agrees_with_itself:
            tally.count("listed otherwise")
            _ask(place.daemon, "DELETE", f"/storage/delete/{key}")
            model.found(key, None)
        else:
            tally.fault("error", f"{key} is listed with {sizes.get(key)} bytes: {seen.status}, {len(seen.body)} bytes")


def _look(daemon: Daemon, model: Model) -> tuple[Sizes, dict[str, Seen]]:
    """The sizes in the list, and then the responses to GETs of all keys."""
    sizes = listed(daemon)
    answers = {key: _ask(daemon, "GET", f"/storage/get/{key}") for key in sorted({*model.keys(), *sizes})}
    return sizes, {key: Seen(key, answer.status, answer.body) for key, answer in answers.items()}


def _agree(sizes: Sizes, seen: Seen) -> bool:
    return (len(seen.body) if seen.status == 200 else None) == sizes.get(seen.key)


def _is_settling(model: Model, sizes: Sizes, found: Mapping[str, Seen]) -> bool:
    """Whether list and GET differ only for keys with an unanswered write, which S3 may carry out late."""
    odd = [key for key, seen in found.items() if not _agree(sizes, seen)]
    return bool(odd) and all(len(model.possible(key)) > 1 for key in odd)


def listed(daemon: Daemon) -> Sizes:
    """The sizes of all objects in bytes, by key."""
    return {item["key"]: item["size"] for item in json.loads(_ask(daemon, "GET", "/storage/list").body)["objects"]}


def print_figures(title: str, tally: Tally, orphans: int, more: Sequence[str] = ()) -> None:
    """Print the counts of operations, faults and orphans."""
    counts = {**dict.fromkeys(FAULTS, 0), **tally.done, "orphans left": orphans}
    print(title)
    print("".join(f"  {kind:<20}{number:>10,}\n" for kind, number in sorted(counts.items())), end="")
    print("".join(f"  {line}\n" for line in [*more, *tally.faults[:20]]), end="", flush=True)


def _ask(daemon: Daemon, method: str, path: str) -> Response:
    with Connection(("127.0.0.1", daemon.port)) as connection:
        connection.set_timeout(120)
        connection.send(head(method, path))
        return connection.final_response(method)
