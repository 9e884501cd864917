"""Runs nginx as a peer: as a plain proxy, which is the most that one HTTP hop can do; as a file server; and with TLS.

It is tuned for speed: large buffers, no buffering of whole bodies, persistent connections, one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from loads import Server, s3_path
from place import S3, Place, make_certificate
from processes import running

_CONFIG = """
daemon off;
%(processes)s
pid %(folder)s/nginx.pid;
error_log %(folder)s/nginx.log;
events { worker_connections 1024; }
http {
    access_log off;
    client_body_temp_path %(folder)s/body;
    proxy_temp_path %(folder)s/proxy;
    fastcgi_temp_path %(folder)s/fastcgi;
    uwsgi_temp_path %(folder)s/uwsgi;
    scgi_temp_path %(folder)s/scgi;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 100000000;
    client_max_body_size 0;
    proxy_request_buffering off;
    proxy_buffering off;
    %(buffers)s
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    server {
        listen 127.0.0.1:%(port)d %(tls)s;
        location / { %(location)s }
    }
    %(more)s
}
"""

_UPSTREAM = """
    upstream s3 {
        server %s;
        keepalive 64;
        keepalive_requests 100000000;
    }
"""
_BUFFERS = """
    client_body_buffer_size 1m;
    proxy_buffer_size 1m;
    proxy_buffers 8 1m;
    proxy_busy_buffers_size 2m;
"""
_ONE_PROCESS = "master_process off;"
# For a proxy between the measured process and S3, which must not be the bottleneck.
_MORE_PROCESSES = "worker_processes 2;"


@contextmanager
def nginx(place: Place) -> Iterator[Server]:
    """A proxy in front of S3."""
    with _running(place, **_proxy(place.s3)) as pid:
        yield Server(pid, place.port, s3_path)


@contextmanager
def nginx_with_its_buffers(place: Place) -> Iterator[Server]:
    """A proxy in front of S3 with nginx's default buffers of 8 or 16 KiB."""
    with _running(place, **_proxy(place.s3), buffers="") as pid:
        yield Server(pid, place.port, s3_path)


@contextmanager
def nginx_with_tls(place: Place) -> Iterator[Server]:
    """A proxy in front of S3 for clients that use TLS."""
    with _running(place, **_proxy(place.s3), tls=_tls(place.folder)) as pid:
        yield Server(pid, place.port, s3_path, tls=True)


@contextmanager
def nginx_with_file(place: Place, file: Path) -> Iterator[Server]:
    """A server that sends one file as the response to any GET."""
    with _running(place, location=f"root {file.parent}; try_files /{file.name} =404;") as pid:
        yield Server(pid, place.port, s3_path)


@contextmanager
def s3_behind_tls(place: Place) -> Iterator[S3]:
    """An S3 endpoint with TLS, which is a proxy in front of `place.s3`."""
    folder = place.folder / "tls"
    folder.mkdir()
    in_front = replace(place, folder=folder, port=place.port + 1)
    with _running(in_front, **_proxy(place.s3), tls=_tls(folder), processes=_MORE_PROCESSES):
        yield replace(place.s3, endpoint=f"https://127.0.0.1:{in_front.port}", trust=str(folder / "cert.pem"))


def _proxy(s3: S3) -> dict[str, str]:
    scheme, _, host = s3.endpoint.partition("://")
    return {"location": f"proxy_pass {scheme}://s3;", "more": _UPSTREAM % host}


def _tls(folder: Path) -> str:
    key, certificate = make_certificate(folder)
    return f"ssl; ssl_certificate {certificate}; ssl_certificate_key {key}"


@contextmanager
def _running(place: Place, processes: str = _ONE_PROCESS, tls: str = "", **texts: str) -> Iterator[int]:
    # Started by root, nginx would run its workers as another user, who may not read this folder.
    user = "user root;" if os.geteuid() == 0 else ""
    values = {"folder": place.folder, "port": place.port, "tls": tls, "processes": user + processes}
    config = place.folder / "nginx.conf"
    config.write_text(_CONFIG % {"more": "", "buffers": _BUFFERS, **values, **texts})
    with running(["nginx", "-p", str(place.folder), "-c", str(config)], place.port) as pid:
        yield pid
