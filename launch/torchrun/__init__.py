"""Runs under torchrun: roles by rank, rendezvous, keys, and engines that are restarted."""
