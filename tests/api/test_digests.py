"""Digests over the wire: RFC 9530, and Content-MD5."""

from __future__ import annotations

import hashlib
from base64 import b64encode

import pytest

from tests.server.wire import Response, Server, chunk, chunked_put, put, request

BODY = b"hello world " * 20_000  # more than one part of the bucket in memory
SHA_256 = b64encode(hashlib.sha256(BODY).digest()).decode()
SHA_512 = b64encode(hashlib.sha512(BODY).digest()).decode()
MD5 = b64encode(hashlib.md5(BODY).digest()).decode()
WRONG = b64encode(bytes(32)).decode()


class PutTests:
    """Digests that a PUT says its body has."""

    @pytest.mark.parametrize(
        "headers",
        [
            [f"Content-Digest: sha-256=:{SHA_256}:"],
            [f"Repr-Digest: sha-512=:{SHA_512}:"],
            [f"Content-Digest: sha-256=:{SHA_256}:, sha-512=:{SHA_512}:"],
            [f"Content-Digest: unixsum=30637, sha-256=:{SHA_256}:"],
            [f"Content-MD5: {MD5}"],
            [f"Content-Digest: sha-256=:{SHA_256}:", f"Repr-Digest: sha-512=:{SHA_512}:", f"Content-MD5: {MD5}"],
        ],
    )
    def test_right(self, headers: list[str]) -> None:
        """A PUT whose digests match its body is stored."""
        server = Server()
        assert server.ask(put("a", BODY, *headers)).status == 200
        assert server.bucket.objects["a"] == BODY

    @pytest.mark.parametrize("body", [BODY, b"short"])
    @pytest.mark.parametrize(
        ("header", "algorithm"),
        [
            (f"Content-Digest: sha-256=:{WRONG}:", "sha-256"),
            (f"Repr-Digest: sha-512=:{b64encode(bytes(64)).decode()}:", "sha-512"),
            (f"Content-MD5: {b64encode(bytes(16)).decode()}", "md5"),
            (f"Content-Digest: sha-512=:{SHA_512[:-4]}AA==:, sha-256=:{SHA_256}:", "sha-512"),
        ],
    )
    def test_wrong(self, body: bytes, header: str, algorithm: str) -> None:
        """A PUT with a digest of another body is a 400, leaves the old object in place, and frees its slot."""
        server = Server()
        server.bucket.objects["a"] = b"old"
        response = server.ask(put("a", body, header))
        assert (response.status, response.line) == (400, f"the body has another {algorithm} digest than the one given")
        assert server.bucket.objects == {"a": b"old"}
        assert server.slots.free == server.slots.limit

    def test_a_chunked_body(self) -> None:
        """A chunked PUT with a digest of another body is a 400, and is not stored."""
        server = Server()
        data = chunked_put("a", f"Content-Digest: sha-256=:{SHA_256}:") + chunk(BODY[:-1]) + chunk(b"")
        assert server.ask(data).status == 400
        assert server.bucket.objects == {}

    @pytest.mark.parametrize(
        ("header", "line"),
        [
            (
                "Content-Digest: md5=:AAAA:",
                "Content-Digest has no digest of an algorithm that is known: sha-256, sha-512",
            ),
            ("Content-Digest: sha-256=:AAAA:", "Content-Digest has a sha-256 digest that is not 32 bytes in base64"),
            (f"Repr-Digest: sha-512=:{SHA_256}:", "Repr-Digest has a sha-512 digest that is not 64 bytes in base64"),
            ("Content-Digest: sha-256=abc", "Content-Digest has a sha-256 digest that is not 32 bytes in base64"),
            ("Content-Digest: sha-256=:!:", "Content-Digest is not a dictionary of algorithms, as RFC 9530 has it"),
            ("Content-Digest: ", "Content-Digest is not a dictionary of algorithms, as RFC 9530 has it"),
            ("Content-MD5: AAAA", "Content-MD5 is not 16 bytes in base64"),
            ("Content-MD5: not base64", "Content-MD5 is not 16 bytes in base64"),
            (
                "Want-Repr-Digest: sha-256=11",
                "Want-Repr-Digest has a weight for sha-256 that is not a number from 0 to 10",
            ),
            (
                "Want-Repr-Digest: sha-256",
                "Want-Repr-Digest has a weight for sha-256 that is not a number from 0 to 10",
            ),
        ],
    )
    def test_malformed(self, header: str, line: str) -> None:
        """A PUT with a malformed digest field is a 400 before its body is read."""
        server = Server()
        connection = server.connect()
        connection.send(put("a", b"", header, length=100))
        response = connection.response()
        assert (response.status, response.line) == (400, line)
        assert server.bucket.objects == {}

    def test_contradiction(self) -> None:
        """A PUT whose Content-Digest and Repr-Digest contradict each other is a 400."""
        response = Server().ask(
            put("a", BODY, f"Content-Digest: sha-256=:{SHA_256}:", f"Repr-Digest: sha-256=:{WRONG}:")
        )
        assert response.line == "Content-Digest and Repr-Digest have different sha-256 digests"


class WantTests:
    """Digests that a client requests by Want-Repr-Digest."""

    @pytest.mark.parametrize(
        ("wanted", "told"),
        [
            ("sha-256=1", f"sha-256=:{SHA_256}:"),
            ("sha-256=1, sha-512=9", f"sha-512=:{SHA_512}:"),
            ("sha-512=0, sha-256=3, md5=10", f"sha-256=:{SHA_256}:"),
            ("md5=10", None),
            ("sha-256=0", None),
        ],
    )
    def test_put(self, wanted: str, told: str | None) -> None:
        """The response to a PUT has the digest of the known algorithm that the client prefers."""
        response = Server().ask(put("a", BODY, f"Want-Repr-Digest: {wanted}"))
        assert response.status == 200
        assert response.headers.get("repr-digest") == told

    def test_get_and_head(self) -> None:
        """A GET or HEAD returns a digest that the PUT gave or requested; a range has the digest of the whole object."""
        server = Server()
        server.ask(put("a", BODY, f"Content-Digest: sha-256=:{SHA_256}:"))

        def ask(method: str, *headers: str) -> Response:
            return server.ask(request(method, "/objects/a", *headers))

        for response in (ask("GET"), ask("GET", "Want-Repr-Digest: sha-512=1")):
            assert "repr-digest" not in response.headers
        for response in (
            ask("GET", "Want-Repr-Digest: sha-256=1"),
            ask("HEAD", "Want-Repr-Digest: sha-256=1"),
            ask("GET", "Want-Repr-Digest: sha-256=1", "Range: bytes=0-3"),
        ):
            assert response.headers["repr-digest"] == f"sha-256=:{SHA_256}:"
