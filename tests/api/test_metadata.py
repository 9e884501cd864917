"""Metadata over the wire: GET and HEAD return what the PUT gave."""

from __future__ import annotations

import pytest

from tests.server.wire import Server, put, request

GIVEN = {
    "content-type": "text/html; charset=utf-8",
    "content-encoding": "gzip",
    "content-disposition": 'attachment; filename="a b"',
    "cache-control": "max-age=60",
    "x-amz-meta-owner": "ingest",
    "x-amz-meta-empty": "",
}


class MetadataTests:
    """Metadata of PUT, GET and HEAD."""

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    def test_comes_back(self, method: str) -> None:
        """All metadata of a PUT is returned, and its other headers are not."""
        server = Server()
        server.ask(put("a", b"x", *(f"{name.title()}: {value}" for name, value in GIVEN.items()), "X-Other: 1"))
        headers = server.ask(request(method, "/objects/a")).headers
        assert {name: headers[name] for name in GIVEN} == GIVEN
        assert "x-other" not in headers

    def test_without_a_type(self) -> None:
        """An object without a type is sent as `application/octet-stream`."""
        server = Server()
        server.ask(put("a", b"x", "Cache-Control: no-store"))
        headers = server.ask(request("GET", "/objects/a")).headers
        assert (headers["content-type"], headers["cache-control"]) == ("application/octet-stream", "no-store")

    def test_the_type_of_bytes_is_not_kept(self) -> None:
        """The default type is not stored, as every object without a type is sent with it."""
        server = Server()
        server.ask(put("a", b"x", "Content-Type: application/octet-stream", "x-amz-meta-a: 1"))
        assert server.bucket.metadata["a"] == (("x-amz-meta-a", "1"),)
        assert server.ask(request("GET", "/objects/a")).headers["content-type"] == "application/octet-stream"

    def test_an_overwrite_replaces_it(self) -> None:
        """A PUT replaces the metadata of the old object too."""
        server = Server()
        server.ask(put("a", b"x", "x-amz-meta-a: 1"))
        server.ask(put("a", b"x"))
        assert "x-amz-meta-a" not in server.ask(request("GET", "/objects/a")).headers

    @pytest.mark.parametrize(("size", "status"), [(2048, 200), (2049, 400)])
    def test_its_size_is_bounded(self, size: int, status: int) -> None:
        """A PUT with more than 2 KiB of metadata, names included, is a 400."""
        name = "x-amz-meta-a"
        server = Server()
        response = server.ask(put("a", b"x", f"{name}: {'v' * (size - len(name))}"))
        assert response.status == status
        if status == 400:
            assert response.line == "metadata too large (>2048 bytes)"
            assert server.bucket.objects == {}

    def test_must_be_text(self) -> None:
        """A PUT whose metadata is not ASCII, or has a field twice, is a 400."""
        assert Server().ask(put("a", b"x", "x-amz-meta-a: ä")).line == "x-amz-meta-a is not ASCII"
        assert Server().ask(put("a", b"x", "Content-Type: a/b", "Content-Type: c/d")).status == 400

    @pytest.mark.parametrize("path", ["/objects/a", "/objects/missing", "/storage/list", "/health", "/nowhere"])
    def test_nothing_runs_in_a_browser(self, path: str) -> None:
        """Every response has the headers that keep a browser from running what is stored."""
        server = Server()
        server.ask(put("a", b"<script>alert(1)</script>", "Content-Type: text/html"))
        headers = server.ask(request("GET", path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"] == "default-src 'none'; sandbox"
