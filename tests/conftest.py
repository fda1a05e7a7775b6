"""Settings of all tests: no deadline for examples, for a busy machine is no bug."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("darts", deadline=None)
settings.load_profile("darts")
