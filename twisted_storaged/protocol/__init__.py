"""Protocols without I/O, for the server and for the client of S3 alike: HTTP/1.1, its fields, SigV4, S3's XML."""
