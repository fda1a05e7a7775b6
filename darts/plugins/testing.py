"""Builders of views, for the tests of plug-ins: a group in one line."""

from pipeline.plugins import testing
from pipeline.plugins.testing import *  # noqa: F403  the list is there

__all__ = testing.__all__
