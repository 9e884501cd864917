"""The embedded bucket: an SQLite index and immutable files, in a folder of this machine."""
