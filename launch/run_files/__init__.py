"""Reads what a run has written: lines of JSON and figures of steps."""
