"""Tests of buckets of S3."""
