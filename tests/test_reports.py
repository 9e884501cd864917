"""Reports of a process and of all."""

from __future__ import annotations

import os

import pytest
from msgspec.json import encode
from twisted.internet.defer import Deferred, fail, succeed

from tests.support import result
from twisted_storaged.errors import SupervisorSilent
from twisted_storaged.reports import Report, Reports, read_file, write_file
from twisted_storaged.runtime.metering import Meters
from twisted_storaged.runtime.report_file import ReportWriter, make_report_file


class Others:
    """The reports of other processes."""

    def __init__(self, reports: list[Report]) -> None:
        self.reports = reports

    def collect(self) -> Deferred[list[Report]]:
        return succeed(self.reports)


class Silent:
    """A supervisor that does not answer."""

    def collect(self) -> Deferred[list[Report]]:
        return fail(SupervisorSilent())


def example() -> Reports:
    """The reports of a process that has counted to 3."""
    meters = Meters()
    meters.counter("storaged_x", "X.", ("verb",)).add(3, "put")
    return Reports(meters, wall_clock=lambda: 5.0)


def test_own() -> None:
    """A report has the metrics of the process."""
    report = example().own()
    assert (report.pid, report.written) == (os.getpid(), 5.0)
    assert report.metrics[0].values == [(("put",), 3)]


def test_all() -> None:
    """All reports are that of the process and those of the others; its own alone if there are none."""
    alone = example()
    assert result(alone.all()) == [alone.own()]
    other = Report(1, 2.0, [])
    assert result(Reports(alone.meters, Others([other]), lambda: 5.0).all()) == [alone.own(), other]


def test_what_is_shown_is_kept() -> None:
    """What was shown is in the file of the process, so that its counters do not go back if it is killed then."""
    file = make_report_file()
    reports = Reports(example().meters, wall_clock=lambda: 5.0, file=file)
    reports.write()
    reports.meters.counter("storaged_x", "X.", ("verb",)).add(1, "put")
    (shown,) = result(reports.all())
    assert read_file(file) == shown
    assert shown.metrics[0].values == [(("put",), 4)]
    os.close(file)


def test_others_that_are_not_known() -> None:
    """There is no report at all without those of the others: the sums would go back."""
    with pytest.raises(SupervisorSilent):
        result(Reports(example().meters, Silent()).all())


def test_files() -> None:
    """A report is read as it was written; one of another version of storaged is none."""
    file = make_report_file()
    writer, report = ReportWriter(file), example().own()
    assert read_file(file) is None
    write_file(writer, report)
    assert read_file(file) == report
    for other in (b"{", encode({"pid": "seven"})):
        writer.write(other)
        assert read_file(file) is None
    os.close(file)
