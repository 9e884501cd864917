"""Tests of the embedded bucket."""
