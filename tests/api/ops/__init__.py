"""Tests of what is served for operators."""
