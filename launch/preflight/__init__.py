"""Checks before a run starts: what would fail later is refused now."""
