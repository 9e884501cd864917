"""Loads with faults in them, on a real daemon, and what must be there afterwards; used by tests and by scripts."""
