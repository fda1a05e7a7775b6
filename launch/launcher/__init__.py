"""Starts the processes of a run on one machine, watches them, and ends them."""
