"""Benchmarks that pytest runs, one question a file."""
