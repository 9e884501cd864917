"""The tests mirror the package; `integration` is for real processes and real engines."""
