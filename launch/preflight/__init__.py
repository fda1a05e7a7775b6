"""Checks before a run starts: problems that would show hours later are reported now."""
