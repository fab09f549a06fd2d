"""Benchmarks: each command prints JSON lines."""
