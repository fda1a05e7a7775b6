"""Batch rules of the house, one a file: the open step -> which groups, and when to close."""
