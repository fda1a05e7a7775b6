"""The benchmark of engine and learner on one GPU."""
