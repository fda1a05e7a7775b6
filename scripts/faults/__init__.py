"""Faults at random moments in real runs, and what has to hold after each."""
