"""Builders of views, for the tests of plug-ins: a group in one line."""

from pipeline.plugins.testing import *  # noqa: F403  the list is there
from pipeline.plugins.testing import __all__  # noqa: F401
