"""A server of the verb paths with deliberate mistakes, for tests of the conformance kit: `python wrong_server.py`.

It prints its port on stdout. Comments that begin with "Wrong" mark the mistakes.
"""

from __future__ import annotations

import hashlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

CAP = 1 << 20


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    objects: dict[str, bytes] = {}  # noqa: RUF012 (all connections share them)

    def do_PUT(self) -> None:
        key = self.key()
        if "\0" in key:
            self.answer(400, b"key contains NUL byte\n", close=True)
        elif int(self.headers.get("Content-Length", 0)) > CAP:
            # Wrong: no Retry-After, and the connection is closed with the body unread, which resets it.
            self.answer(413, b"payload too large\n", close=True)
        else:
            # Wrong: there is no limit of concurrent PUTs, and an incomplete body is stored.
            self.objects[key] = self.body()
            document = {"status": "ok", "key": key, "size": len(self.objects[key]), "etag": self.etag(key)}
            self.answer(200, json.dumps(document).encode(), "application/json")

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(200, b'{"status":"ok"}', "application/json")
        elif self.path.startswith("/storage/list"):
            self.list(unquote(urlsplit(self.path).query.removeprefix("prefix=")))
        elif self.path.startswith("/storage/get/") and self.key() in self.objects:
            self.answer(200, self.objects[self.key()], "application/octet-stream", self.etag(self.key()))
        else:
            self.answer(404, b"not found\n")

    do_HEAD = do_GET

    def do_DELETE(self) -> None:
        # Wrong: 404 for a missing object.
        self.answer(204 if self.objects.pop(self.key(), None) is not None else 404, b"")

    def list(self, prefix: str) -> None:
        # Wrong: in the order of insertion.
        entries = [
            {"key": key, "size": len(data), "etag": self.etag(key), "last_modified": "2026-01-01T00:00:00Z"}
            for key, data in list(self.objects.items())
            if key.startswith(prefix)
        ]
        self.answer(200, json.dumps({"prefix": prefix, "objects": entries}).encode(), "application/json")

    def key(self) -> str:
        # Wrong: percent-decoded twice.
        return unquote(unquote("/".join(self.path.partition("?")[0].split("/")[3:])))

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        body = b""
        while size := int(self.rfile.readline() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def etag(self, key: str) -> str:
        return hashlib.sha256(self.objects[key]).hexdigest()

    def answer(self, status: int, body: bytes, kind: str = "text/plain", etag: str = "", close: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if etag:
            self.send_header("ETag", f'"{etag}"')
        if close:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its name where it is called)
        """Log nothing."""


class Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Log nothing: clients of the kit disconnect on purpose."""


if __name__ == "__main__":
    with Server(("127.0.0.1", 0), Handler) as server:
        sys.stdout.write(f"{server.server_address[1]}\n")
        sys.stdout.flush()
        server.serve_forever()
