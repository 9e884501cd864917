"""Whole daemons and real clients."""
