"""Reads what a run has written: lines of JSON and facts about steps."""
