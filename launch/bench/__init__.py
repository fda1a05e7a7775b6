"""Measurements: methods compared, one GPU, and what developers measure. Importing this loads no torch."""
