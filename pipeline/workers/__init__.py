"""Runs users' code in worker processes: rewards and environments.

`pool` serves calls to the stage, `process` holds one worker, `__main__` is what runs in it.
"""
