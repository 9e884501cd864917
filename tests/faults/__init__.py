"""Loads with faults on a real daemon, and the check of what is stored afterwards; used by tests and as scripts."""
