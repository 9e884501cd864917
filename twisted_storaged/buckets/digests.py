"""The digests of a body, computed as its parts go by: in threads, as hashing a part takes longer than reading it."""

from __future__ import annotations

import hashlib

from twisted.internet.defer import Deferred, DeferredLock

from twisted_storaged.buckets.objects import Digests, PutOptions
from twisted_storaged.buckets.threads import Run
from twisted_storaged.errors import DigestMismatch

_HASHES = {"md5": "md5", "sha-256": "sha256", "sha-512": "sha512"}


class Digesting:
    """Computes what `options` say of one body."""

    def __init__(self, options: PutOptions, run: Run) -> None:
        self._expected = options.expected
        self._hashes = {
            name: hashlib.new(_HASHES[name], usedforsecurity=False)
            for name in sorted({*options.expected, *options.wanted})
        }
        self._run = run
        # Hashes take the parts in their order, one at a time.
        self._turns = DeferredLock()

    def __bool__(self) -> bool:
        """Whether there is anything to compute."""
        return bool(self._hashes)

    def take(self, part: bytearray) -> Deferred[None]:
        """Go on with the next part, whose memory is in use until this has fired."""
        return self._turns.run(self._run, self._update, part)

    def check(self) -> Digests:
        """The digests of all parts, once the last has been taken.

        Raises:
            DigestMismatch: one is not as expected.
        """
        digests = {name: running.digest() for name, running in self._hashes.items()}
        for name, expected in self._expected.items():
            if digests[name] != expected:
                raise DigestMismatch(f"the body has another {name} digest than the one given")
        return digests

    def _update(self, part: bytearray) -> None:
        for running in self._hashes.values():
            running.update(part)
