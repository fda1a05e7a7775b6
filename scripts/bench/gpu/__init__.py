"""Benchmark of engine and learner on one GPU."""
