"""Measurements for developers of darts; not part of the wheel."""
