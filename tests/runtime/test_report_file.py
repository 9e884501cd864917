"""The file by which a process shows others its latest report."""

from __future__ import annotations

import os
from collections.abc import Iterator
from threading import Thread

import pytest

from twisted_storaged.runtime.report_file import LONGEST, ReportWriter, make_report_file, read_report


@pytest.fixture
def file() -> Iterator[int]:
    """A report file."""
    descriptor = make_report_file()
    yield descriptor
    os.close(descriptor)


def test_the_latest_is_read(file: int) -> None:
    """A reader gets the report that was written last, shorter or longer than those before."""
    assert read_report(file) == b""
    writer = ReportWriter(file)
    for report in (b"a" * 1000, b"b", b"", b"c" * 100_000):
        assert writer.write(report)
        assert read_report(file) == report


def test_too_long(file: int) -> None:
    """A report that is too long does not replace the last one."""
    writer = ReportWriter(file)
    assert writer.write(b"a" * LONGEST)
    assert not writer.write(b"b" * (LONGEST + 1))
    assert read_report(file) == b"a" * LONGEST


def test_a_writer_that_dies_leaves_the_last_report(file: int) -> None:
    """A report that was written in part does not replace the last one."""
    writer = ReportWriter(file)
    writer.write(b"first")
    writer.write(b"second")
    first_half = os.pread(file, 4096, 4096)
    assert b"first" in first_half
    os.pwrite(file, b"\xff" * 30, 4096)
    assert read_report(file) == b"second"


def test_readers_do_not_see_two_reports_mixed(file: int) -> None:
    """While reports are written one after the other, each read returns one of them, or none."""
    writer, ends = ReportWriter(file), False

    def write() -> None:
        number = 0
        while not ends:
            number = (number + 1) % 10
            writer.write(b"%d" % number * 50_000)

    thread = Thread(target=write)
    thread.start()
    try:
        reports: list[bytes] = []
        while sum(map(bool, reports)) < 50:
            reports.append(read_report(file))
    finally:
        ends = True
        thread.join()
    assert all(len(set(report)) <= 1 and len(report) in {0, 50_000} for report in reports)
