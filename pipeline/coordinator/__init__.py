"""The coordinator decides: (event, now) -> commands, without socket, clock, file or unseeded
randomness.

Start at `coordinator.py`; `events.py` lists all that goes in and comes out.
"""
