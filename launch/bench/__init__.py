"""Measurements: methods, one GPU, and those for developers. Importing this loads no torch."""
