"""Runs twistd with a storaged that forgets requests when they have ended: for observing.py."""

from __future__ import annotations

from twisted.scripts.twistd import run

from twisted_storaged.server.site import StorageSite


def forget(site: StorageSite, request: object) -> None:
    """Neither log nor count a request."""


if __name__ == "__main__":
    StorageSite.log = forget  # type: ignore[assignment]
    run()
