"""Runs under torchrun: roles by rank, rendezvous, keys, and restarts of engines."""
