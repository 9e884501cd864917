"""What proves that a write was carried out, or was not: as tables, without an engine."""

from __future__ import annotations

from email.utils import formatdate

import pytest

from twisted_storaged.buckets.s3.proofs import SKEW, is_own, new_write_id, was_put_since, was_there_before
from twisted_storaged.protocol.http1 import Response
from twisted_storaged.protocol.metadata import WRITE_ID_NAME

NOW = 1_700_000_000


def found(age: float, etag: str = '"e"', **headers: str) -> Response:
    """An answer to a look at an object that was put `age` seconds ago."""
    dates = {"date": formatdate(NOW, usegmt=True), "last-modified": formatdate(NOW - age, usegmt=True)}
    return Response(200, {**dates, "etag": etag, **headers})


class OwnTests:
    """Recognising what was put."""

    def test_ids_differ(self) -> None:
        """They are random."""
        assert len({new_write_id() for _ in range(100)}) == 100

    @pytest.mark.parametrize(
        ("sent", "kept", "status", "expected"),
        [
            ("a", "a", 200, True),
            ("a", "b", 200, False),
            ("a", None, 200, False),
            (None, None, 200, False),
            ("a", "a", 404, False),
        ],
    )
    def test_by_its_id(self, sent: str | None, kept: str | None, status: int, expected: bool) -> None:
        """A write without an id recognises nothing, also where the object has none."""
        headers = {} if kept is None else {WRITE_ID_NAME: kept}
        assert is_own(Response(status, headers), {} if sent is None else {WRITE_ID_NAME: sent}) == expected


class DatesTests:
    """What an object's date says, beside when a write began."""

    @pytest.mark.parametrize(
        ("age", "before", "since"),
        [
            (60, True, False),
            (5 + SKEW + 1, True, False),
            (5 + SKEW, False, False),
            (5, False, False),
            (5 - SKEW, False, False),
            (5 - SKEW - 1, False, True),
            (0, False, True),
        ],
    )
    def test_of_a_write_that_began_five_seconds_ago(self, age: float, before: bool, since: bool) -> None:
        """Near to when it began, the dates say neither."""
        assert (was_there_before(found(age), 5), was_put_since(found(age), 5)) == (before, since)

    def test_of_an_object_in_parts(self) -> None:
        """It may be dated to when its upload was created, long before it was there."""
        assert not was_there_before(found(60, '"e-2"'), 5)

    @pytest.mark.parametrize("headers", [{"date": "today"}, {"last-modified": ""}])
    def test_that_cannot_be_read(self, headers: dict[str, str]) -> None:
        """They say nothing."""
        answer = found(60, **headers)
        assert (was_there_before(answer, 5), was_put_since(answer, 1e9)) == (False, False)
