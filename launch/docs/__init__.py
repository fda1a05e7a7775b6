"""Generates pages of the documentation from the source and the tests."""
